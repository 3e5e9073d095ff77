"""Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM2) word by word: texts are cut by a pattern, and merges stay inside.

The pattern is the tokenizer's own, but another engine runs it, of another version of Unicode: what is a letter to one
may be nothing to the other. So each character is tried in both before a word with it is trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qdpo.data.words import Words, bpe_of, settings_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ByteLevel cuts by where it has no pattern before it (openai/gpt-2, `encoder.py`)."""
DIGITS = {True: r"\p{N}|\P{N}+", False: r"\p{N}+|\P{N}+"}
"""What Digits cuts by: digits one by one, or together."""
UNLIKE = ("&&", "[[", "\\p{^", "\\h", "\\R", "\\X")
"""What the two engines read in different ways."""
UNIFYING: tuple[dict[str, Any], ...] = ({}, {"type": "NFC"}, {"type": "Sequence", "normalizers": []})
"""Normalizers that leave ASCII as it is."""
NEIGHBOURS = "aA1 .\n'\u0301"
"""One of each class that patterns tell apart: what a new character is tried beside."""


def byte_level_words(tokenizer: PreTrainedTokenizerBase) -> Words | None:
    """For a byte-level BPE whose pattern is understood; None for any other tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import ByteLevel

    found = bpe_of(tokenizer)
    if found is None:
        return None
    backend, special = found
    steps = _steps(settings_of(backend.pre_tokenizer))
    patterns = _patterns(steps)
    if not patterns or settings_of(backend.normalizer) not in UNIFYING:
        return None
    cutter = _Cutter(patterns, backend, steps[-1]["add_prefix_space"])
    if not all(map(cutter.same, map(chr, range(128)))):
        return None
    alone = Tokenizer(backend.model)
    alone.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    return Words(alone, special, cutter, cutter.trusts)


class _Cutter:
    """Cuts a text without added tokens into words.

    Args:
        patterns: one after the other, each cuts what the one before it has left.
        backend: the tokenizer, to compare with.
        prefix: whether a text that begins with no space gets one.
    """

    def __init__(self, patterns: Sequence[str], backend: Any, prefix: bool) -> None:
        import regex

        self.finders: list[Callable[[str], list[str]]] = [regex.compile(pattern).findall for pattern in patterns]
        self.backend, self.prefix = backend, prefix
        self.sure: dict[str, bool] = {}

    def __call__(self, part: str, first: bool) -> list[str]:
        if self.backend.normalizer is not None and not part.isascii():
            part = self.backend.normalizer.normalize_str(part)
        if self.prefix and not part.startswith(" "):
            part = " " + part
        words = [part]
        for find in self.finders:
            words = find(words[0]) if len(words) == 1 else [word for piece in words for word in find(piece)]
        return words

    def trusts(self, word: str) -> bool:
        """Whether the tokenizer cuts texts with the characters of this word in the same places."""
        return word.isascii() or all(map(self.same, set(word)))

    def same(self, character: str) -> bool:
        """Whether a character beside others of every class is cut in the same places by the tokenizer."""
        if character not in self.sure:
            text = "".join(f"{other}{character}{other}" for other in NEIGHBOURS) + character * 2
            ours = self(text, True)
            if self.backend.normalizer is not None:
                text = self.backend.normalizer.normalize_str(text)
            # there, each byte of a word is a character
            theirs = [len(word) for word, _ in self.backend.pre_tokenizer.pre_tokenize_str(text)]
            self.sure[character] = [len(word.encode()) for word in ours] == theirs
        return self.sure[character]


def _steps(pre_tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    """What a pre-tokenizer does, one after the other."""
    return pre_tokenizer.get("pretokenizers", [pre_tokenizer])


def _patterns(steps: Sequence[dict[str, Any]]) -> list[str]:
    """The patterns that a byte-level pre-tokenizer cuts by, in their order; none where it is another one."""
    *before, last = steps or [{}]
    if last.get("type") != "ByteLevel" or (before and last["add_prefix_space"]):
        return []
    patterns = [_pattern(step) for step in before] + [GPT2] * last["use_regex"]
    return [] if "" in patterns else patterns


def _pattern(step: dict[str, Any]) -> str:
    """What a step before ByteLevel cuts by; empty where that is not known."""
    if step.get("type") == "Digits":
        return DIGITS[step["individual_digits"]]
    if step.get("type") != "Split" or step["behavior"] != "Isolated" or step["invert"]:
        return ""
    pattern = str(step["pattern"].get("Regex", ""))
    return "" if any(sign in pattern for sign in UNLIKE) else pattern
