"""The quickstart's embedded model and pairs: what they promise, and that the generator still writes them."""

import json
import random
import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools.quickstart_assets.__main__ import ASSETS, HELDOUT_TEXTS, SEED  # noqa: E402
from tools.quickstart_assets.corpus import make_corpus, make_heldout_texts, render  # noqa: E402
from tools.quickstart_assets.dialogues import finish_sentence  # noqa: E402
from tools.quickstart_assets.pairs import answer_key, make_pairs  # noqa: E402
from tools.quickstart_assets.schemas import PROMPT_LEADS, SCHEMAS  # noqa: E402
from tools.quickstart_assets.tokenizer import BYTE_TOKENS, SPACE, build_tokenizer, learn_pieces  # noqa: E402

MAX_BYTES = 8_000_000
SPLITS = ("train", "heldout")
SAMPLES = [
    "The trophy did not fit in the suitcase because the trophy was too big.",
    "  two  spaces,\ttabs\nand lines \n",
    "na\u00efve caf\u00e9 \u2013 \u4f60\u597d \U0001f426\u200d\u2b1b \U0001f1ee\U0001f1f9",
    "\x00\x7f\u00ff",
    "x",
    "",
]


def read_rows(name: str) -> list[dict[str, str]]:
    """The rows of a shipped JSONL file."""
    return [json.loads(line) for line in (ASSETS / name).read_text(encoding="utf-8").splitlines()]


def sentence_of(pair: dict[str, str]) -> str:
    """The sentence that a prompt asks to finish, without the request in front of it."""
    lead = next(lead for lead in PROMPT_LEADS if pair["prompt"].startswith(lead))
    return pair["prompt"].removeprefix(lead)


def noun_of(completion: str, sentence: str) -> str:
    """The noun that a completion starts with."""
    word = re.match(r"(?:the )?([A-Za-z]+)", completion).group(1)
    assert word in re.findall(r"[A-Za-z]+", sentence)
    return word


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(ASSETS / "base")


def test_the_answer_key_is_made_of_the_heldout_pairs() -> None:
    assert read_rows("pairs/answer_key.jsonl") == answer_key(read_rows("pairs/heldout.jsonl"))


def test_assets_are_small() -> None:
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= MAX_BYTES


def test_shipped_pairs_are_what_the_generator_writes() -> None:
    pairs = make_pairs(SEED)
    assert read_rows("pairs/train.jsonl") == pairs.train
    assert read_rows("pairs/heldout.jsonl") == pairs.heldout


def test_shipped_texts_are_what_the_generator_writes() -> None:
    texts = make_heldout_texts(SEED, HELDOUT_TEXTS)
    assert [row["text"] for row in read_rows("text_heldout.jsonl")] == texts


def test_corpus_is_deterministic_and_keeps_held_out_texts_out() -> None:
    excluded = make_pairs(SEED).heldout_instances
    heldout = frozenset(make_corpus(SEED, 20, excluded, frozenset()))
    first = make_corpus(SEED, 200, excluded, heldout)
    assert first == make_corpus(SEED, 200, excluded, heldout)
    assert heldout.isdisjoint(first)
    assert first != make_corpus(SEED + 1, 200, excluded, heldout)


def test_base_never_sees_a_held_out_sentence_finished() -> None:
    excluded = make_pairs(SEED).heldout_instances
    heldout = {instance.sentence for instance in excluded}
    rng = random.Random(0)
    for _ in range(3000):
        prompt = finish_sentence(rng, excluded)[0]["content"]
        assert sentence_of({"prompt": prompt}).removesuffix(" because") not in heldout


def test_splits_have_their_sizes_and_share_no_sentence() -> None:
    train, heldout = (read_rows(f"pairs/{split}.jsonl") for split in SPLITS)
    assert (len(train), len(heldout)) == (1188, 216)
    assert {sentence_of(pair) for pair in train}.isdisjoint(sentence_of(pair) for pair in heldout)
    assert len(SCHEMAS) >= 20


@pytest.mark.parametrize("split", SPLITS)
def test_trivial_rules_are_at_chance(split: str) -> None:
    pairs = read_rows(f"pairs/{split}.jsonl")
    first, longer, unequal = 0, 0, 0
    for pair in pairs:
        sentence = sentence_of(pair)
        right, wrong = noun_of(pair["chosen"], sentence), noun_of(pair["rejected"], sentence)
        words = re.findall(r"[A-Za-z]+", sentence)
        first += words.index(right) < words.index(wrong)
        unequal += len(pair["chosen"]) != len(pair["rejected"])
        longer += len(pair["chosen"]) > len(pair["rejected"])
    assert 0.45 <= first / len(pairs) <= 0.55
    assert 0.45 <= longer / unequal <= 0.55


@pytest.mark.parametrize("split", SPLITS)
def test_both_nouns_of_every_sentence_are_right_once(split: str) -> None:
    pairs = read_rows(f"pairs/{split}.jsonl")
    counts = Counter(sentence_of(pair) for pair in pairs)
    rights = Counter((sentence_of(pair), noun_of(pair["chosen"], pair["prompt"])) for pair in pairs)
    assert set(counts.values()) == {2}
    assert set(rights.values()) == {1}


def test_completions_differ_in_the_noun_only() -> None:
    for pair in read_rows("pairs/heldout.jsonl"):
        chosen = noun_of(pair["chosen"], pair["prompt"])
        rejected = noun_of(pair["rejected"], pair["prompt"])
        assert pair["chosen"].replace(chosen, rejected, 1) == pair["rejected"]


@pytest.mark.parametrize("text", SAMPLES)
def test_tokenizer_round_trip(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids.index(tokenizer.bos_token_id) == 0
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_special_tokens_and_bytes_have_llamas_ids(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == ["<unk>", "<s>", "</s>", "<pad>"]
    assert tokenizer.convert_ids_to_tokens(list(range(4, 260))) == list(BYTE_TOKENS)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (3, 2)
    assert AutoConfig.from_pretrained(ASSETS / "base").vocab_size == len(tokenizer)


def sentencepiece_bpe(text: str, scores: dict[str, int]) -> list[str]:
    """Sentencepiece's BPE: join the two neighbours of the best-scored join, leftmost first, until none is known."""
    symbols = list(SPACE + text.replace(" ", SPACE))
    while True:
        joins = [(scores.get(left + right), -at) for at, (left, right) in enumerate(pairwise(symbols))]
        known = [join for join in joins if join[0] is not None]
        if not known:
            return symbols
        at = -max(known)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


def test_scores_from_ranks_give_the_same_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """What a GGUF reader does with the scores -0, -1, -2, ... of the pieces."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(260, len(tokenizer))))
    scores = {piece: -rank for rank, piece in enumerate(pieces)}
    for row in read_rows("text_heldout.jsonl"):
        for line in row["text"].replace("</s>", "").split("\n"):
            if line:
                assert tokenizer.tokenize(line) == sentencepiece_bpe(line, scores)


def test_template_gives_one_bos_and_an_eos_per_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [
        {"role": "system", "content": "You are a jay."},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hello! How are you?"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == ("<s><|system|>\nYou are a jay.</s>\n<|user|>\nHello!</s>\n<|assistant|>\nHello! How are you?</s>\n")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.index(tokenizer.bos_token_id) == 0
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids.count(tokenizer.eos_token_id) == 3
    last = len(ids) - 1 - ids[::-1].index(tokenizer.eos_token_id)
    assert tokenizer.decode(ids[last + 1 :]).strip() == ""  # nothing but the newline follows the last EOS


def test_prompt_tokens_are_a_prefix_of_the_conversation(tokenizer: PreTrainedTokenizerBase) -> None:
    for pair in read_rows("pairs/heldout.jsonl"):
        user = [{"role": "user", "content": pair["prompt"]}]
        turn = [*user, {"role": "assistant", "content": pair["chosen"]}]
        prompt = tokenizer.apply_chat_template(user, add_generation_prompt=True)["input_ids"]
        whole = tokenizer.apply_chat_template(turn)["input_ids"]
        assert whole[: len(prompt)] == prompt


def test_corpus_is_rendered_as_the_tokenizer_renders_it(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello!"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert rendered == tokenizer.bos_token + render(messages)
    assert tokenizer(render(messages))["input_ids"] == tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_tokenizer_training_is_deterministic() -> None:
    texts = make_corpus(SEED, 300, frozenset(), frozenset())
    first, second = (build_tokenizer(learn_pieces(texts, 700)) for _ in range(2))
    assert first.to_str() == second.to_str()
    assert first.get_vocab_size() == 700
