"""A BPE tokenizer that behaves like sentencepiece's, in the layout of Llama's and Mistral's first fast tokenizers."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .corpus import CHAT_TEMPLATE

UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"
SPECIAL_TOKENS = (UNK, BOS, EOS, PAD)
BYTE_TOKENS = tuple(f"<0x{value:02X}>" for value in range(256))
SPACE = "\u2581"

# A newline stays out of the alphabet: like in Mistral's tokenizer it is the byte <0x0A>.
ALPHABET = [chr(code) for code in range(0x21, 0x7F)] + [SPACE]

# Used in training only, so that no piece spans two words. Chat markers may become pieces of their own.
WORDS = Regex(rf"<\|[a-z]+\|>|{SPACE}?[A-Za-z]+|{SPACE}?<\|[a-z]+\|>|{SPACE}?[0-9]|{SPACE}?[^A-Za-z0-9{SPACE}]|{SPACE}")


def learn_pieces(texts: Iterable[str], vocab_size: int) -> list[str]:
    """The merged pieces in the order BPE finds them: a piece's rank is minus its score."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Split(WORDS, behavior="isolated")
    size = vocab_size - len(SPECIAL_TOKENS) - len(BYTE_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=ALPHABET, limit_alphabet=len(ALPHABET), min_frequency=2, show_progress=False
    )
    # Specials never reach the learner, and newlines are bytes: train on what lies between them. As in Mistral's
    # tokenizer, the normalizer puts a space in front of the text and after every special, not after a newline.
    spaced = ((SPACE + segment.replace(" ", SPACE)) for text in texts for segment in text.split(EOS) if segment)
    learner.train_from_iterator((line for segment in spaced for line in segment.split("\n") if line), trainer)
    by_id = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    return [piece for piece, _ in by_id if len(piece) > 1]


def merges_by_rank(pieces: list[str], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """All ways to join two tokens to a piece, best piece first.

    Sentencepiece joins any two neighbours whose join is in the vocabulary, best score first. Listing every such pair
    makes a merge-list BPE do the same, and lets scores be read off the ranks.
    """
    merges = []
    for piece in pieces:
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [split for split in splits if split[0] in vocab and split[1] in vocab]
        merges += sorted(known, key=lambda split: (vocab[split[0]], vocab[split[1]]))
    return merges


def build_tokenizer(pieces: list[str]) -> Tokenizer:
    """A tokenizer whose ids are: specials, bytes, pieces by rank, single characters (Llama's order)."""
    tokens = [*SPECIAL_TOKENS, *BYTE_TOKENS, *pieces, *ALPHABET]
    vocab = {token: index for index, token in enumerate(tokens)}
    model = models.BPE(
        vocab=vocab, merges=merges_by_rank(pieces, vocab), unk_token=UNK, fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, vocab[BOS])]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json (with the chat template in it)."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder, save_jinja_files=False)
