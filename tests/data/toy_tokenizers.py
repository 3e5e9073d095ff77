"""Small tokenizers made in code: SPM-like and byte-level BPE, with the special tokens a test asks for."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The trophy does not fit into the suitcase because the suitcase is too small.",
    "What is the capital of France? The capital of France is Paris. user assistant system",
    "one two three four five six seven eight nine ten eleven twelve. Yes, no; hello world!",
]


@cache
def _byte_level() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def byte_level(*extra: str, bos: str | None = "<s>", eos: str | None = "</s>", **kwargs) -> PreTrainedTokenizerFast:
    """A byte-level BPE; it writes its BOS by itself, as Llama's does, if it has one."""
    tokenizer = Tokenizer.from_str(_byte_level())
    special = [token for token in (bos, eos, *extra) if token]
    tokenizer.add_special_tokens(special)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, **kwargs)


def words(vocabulary: list[str], **kwargs) -> PreTrainedTokenizerFast:
    """A tokenizer that knows these words alone."""
    names = ["<s>", "</s>", "<unk>", *vocabulary]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **kwargs
    )
