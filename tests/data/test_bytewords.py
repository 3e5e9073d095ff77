"""Byte-level BPE word by word: the tokenizer's own ids for texts of every kind, or no words at all."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
from data import real_tokenizers
from data.toy_tokenizers import CORPUS
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, Punctuation, Sequence, Split
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from qdpo.data import bytewords
from qdpo.data.bytewords import byte_level_words
from qdpo.data.encoder import make_encoder

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA_3.replace("{1,3}", "")
AS_IT_IS = ByteLevel(add_prefix_space=False, use_regex=False)


def split(pattern: str, behavior: str = "isolated", invert: bool = False) -> Split:
    return Split(Regex(pattern), behavior, invert)


CUT = {
    "GPT-2": (ByteLevel(add_prefix_space=False), None),
    "a space in front": (ByteLevel(add_prefix_space=True), None),
    "Llama 3": (Sequence([split(LLAMA_3), AS_IT_IS]), None),
    "Qwen": (Sequence([split(QWEN), AS_IT_IS]), normalizers.NFC()),
    "SmolLM2": (Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]), None),
    "digits together": (Sequence([Digits(), ByteLevel(add_prefix_space=False)]), None),
}
PIECES = [
    *"aBé1٣½日ひ한हाกא😀_#(<|\\\x00\x1b\x85\u2028\ufeff\u200d\u0301\u00a0\u3000ßſKʰǅ²𝔘",
    *("café", "e\u0301", "\u212b", "👨\u200d👩", "☕\ufe0f", "'s", "'S", "'ſ", "'LL", "'", "\u2019s"),
    *(" ", "  ", "\n", "\r\n", "\n\n  ", "\t", "def f(x):", "->", "1234", " 56", "…", "</s>", "<s>"),
]
DRAW = random.Random(3)
TEXTS = ["", " ", "one  two\n\n three</s>", *PIECES, *("".join(DRAW.choices(PIECES, k=9)) for _ in range(1_000))]


@cache
def made(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer that cuts as `CUT` says; its merges cross letters with and without accents."""
    pre_tokenizer, normalizer = CUT[name]
    return tokenizer_with(pre_tokenizer, normalizer)


def tokenizer_with(pre_tokenizer: Any, normalizer: Any = None, *added: AddedToken) -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.normalizer = pre_tokenizer, normalizer
    trainer = trainers.BpeTrainer(vocab_size=450, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([*CORPUS, "café crème déjà  vu 1234\n\n日本語 12 it's 'S ...\r\n"] * 3, trainer)
    tokenizer.add_special_tokens(["<s>", "</s>", *added])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def own_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", [*CUT, "gpt2"])
def test_ids_are_the_tokenizers_own(name: str):
    tokenizer = real_tokenizers.load(name) if name == "gpt2" else made(name)
    words = byte_level_words(tokenizer)
    assert words is not None
    found = [words.encode(text) for text in TEXTS]
    for text, ids, expected in zip(TEXTS, found, own_ids(tokenizer, TEXTS), strict=True):
        assert ids == expected, text
    assert make_encoder(tokenizer)(TEXTS) == found


# What cuts in another way, or is understood by nobody here.
OTHERS = {
    "punctuation": Sequence([Punctuation(), ByteLevel(add_prefix_space=False)]),
    "what is no word is taken away": Sequence([split(r"\p{L}+", "removed", True), AS_IT_IS]),
    "a pattern with gaps": Sequence([split(r"\p{N}{1,3}"), AS_IT_IS]),
    "a pattern of another engine": Sequence([split(r"[\p{L}&&[^a]]+|[^\p{L}]+|a"), AS_IT_IS]),
    "a plain text": Sequence([Split(" ", "isolated"), AS_IT_IS]),
    "a space in front of every piece": Sequence([split(LLAMA_3), ByteLevel(add_prefix_space=True, use_regex=False)]),
    "no pattern": AS_IT_IS,
    "no bytes": Metaspace(),
    "nothing": None,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_tokenizers_do_all_themselves(name: str):
    tokenizer = tokenizer_with(OTHERS[name])
    assert byte_level_words(tokenizer) is None
    assert make_encoder(tokenizer)(TEXTS) == own_ids(tokenizer, TEXTS)


@pytest.mark.parametrize(
    ("normalizer", "added", "taken"),
    [
        (None, AddedToken("<x>", normalized=True), True),
        (normalizers.NFC(), AddedToken("<x>", normalized=True), False),
        (normalizers.NFC(), AddedToken("<x>", normalized=False), True),
        (normalizers.Lowercase(), AddedToken("<x>", normalized=False), False),
        (None, AddedToken("<x>", lstrip=True), False),
        (None, AddedToken("<x>", rstrip=True), False),
        (None, AddedToken("<x>", single_word=True), False),
    ],
)
def test_added_tokens_and_normalizers(normalizer: Any, added: AddedToken, taken: bool):
    tokenizer = tokenizer_with(CUT["GPT-2"][0], normalizer, added)
    assert (byte_level_words(tokenizer) is not None) is taken
    texts = [f"{text} <x>{text}" for text in TEXTS[:100]]
    assert make_encoder(tokenizer)(texts) == own_ids(tokenizer, texts)


def test_texts_with_characters_that_the_engines_read_in_different_ways_are_left_to_the_tokenizer(
    monkeypatch: pytest.MonkeyPatch,
):
    # as an engine that has never heard of é
    monkeypatch.setattr(
        bytewords, "GPT2", bytewords.GPT2.replace(r"\p{L}", "a-zA-Z日").replace("?a-zA-Z日", "?[a-zA-Z日]")
    )
    tokenizer = made("GPT-2")
    words = byte_level_words(tokenizer)
    assert words is not None
    assert words.encode("cafe") == own_ids(tokenizer, ["cafe"])[0]
    assert words.encode("café") is None
    texts = ["one", "café", "two café", "three"] * 50
    assert make_encoder(tokenizer)(texts) == own_ids(tokenizer, texts)
    # without the guard they would be other ids
    monkeypatch.setattr(bytewords._Cutter, "same", lambda self, character: True)
    words = byte_level_words(tokenizer)
    assert words is not None
    assert words.encode("café") not in (None, own_ids(tokenizer, ["café"])[0])


def test_a_pattern_that_is_read_in_another_way_is_not_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bytewords, "GPT2", bytewords.GPT2.replace(r" ?\p{N}+", r"\p{N}+"))
    assert byte_level_words(made("GPT-2")) is None
