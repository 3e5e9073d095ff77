"""Text to ids in bulk, the same ids as the tokenizer's own and, word by word, several times faster.

The tokenizer builds strings, offsets and masks for every token of every text, which is most of its time; where merges
stay inside words, `qdpo.data.words` encodes each different word once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from qdpo.data.bytewords import byte_level_words
from qdpo.data.words import Words, sentencepiece_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Encoder = Callable[[list[str]], list[list[int]]]

PORTION = 1 << 18
"""Characters that the tokenizer gets at once, and a text more: what it makes of them takes some 100 bytes a token."""
CHECKED = 100
"""Texts that are encoded in both ways before the words are trusted."""


def make_encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """The fastest way to encode texts without adding special tokens that is known to be right for this tokenizer."""

    def plain(texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = []
        for portion in _portions(texts):
            ids += tokenizer(
                portion,
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
        return ids

    words = sentencepiece_words(tokenizer) or byte_level_words(tokenizer)
    return plain if words is None else _Checked(words, plain)


def _portions(texts: list[str]) -> Iterator[list[str]]:
    portion: list[str] = []
    size = 0
    for text in texts:
        portion.append(text)
        size += len(text)
        if size >= PORTION:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


class _Checked:
    """Compares the first texts with the tokenizer's own ids; one difference, and the tokenizer does all of them."""

    def __init__(self, words: Words, plain: Encoder) -> None:
        self.words: Words | None = words
        self.plain = plain
        self.checked = 0

    def __call__(self, texts: list[str]) -> list[list[int]]:
        if self.words is None:
            return self.plain(texts)
        found = [self.words.encode(text) for text in texts]
        others = iter(self.plain([text for text, ids in zip(texts, found, strict=True) if ids is None]))
        all_ids = [next(others) if ids is None else ids for ids in found]
        if self.checked < CHECKED:
            sample = texts[: CHECKED - self.checked]
            self.checked += len(sample)
            if self.plain(sample) != all_ids[: len(sample)]:
                self.words = None
                return self.plain(texts)
        return all_ids
