"""Text to ids in bulk, the same ids as the tokenizer's own and, for sentencepiece vocabularies, several times faster.

In a sentencepiece BPE (Llama, Mistral, Gemma) no piece has a space inside, so a merge never crosses the beginning of a
word: a text is encoded word by word, and each different word once. The tokenizer builds strings, offsets and masks for
every token of every text, which is most of its time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Encoder = Callable[[list[str]], list[list[int]]]

PORTION = 1 << 18
"""Characters that the tokenizer gets at once, and a text more: what it makes of them takes some 100 bytes a token."""
CHECKED = 100
"""Texts that are encoded in both ways before the words are trusted."""
MOST_WORDS = 200_000
"""Words that are remembered; then the memory is emptied."""
LONGEST_WORD = 64
"""Characters of a word that is worth remembering."""
WORD = re.compile("▁*[^▁]+|▁+")
SPACE_INSIDE = re.compile("[^▁]▁")


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

    words = Words.of(tokenizer)
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
        ids = [self.words.encode(text) for text in texts]
        if self.checked < CHECKED:
            sample = texts[: CHECKED - self.checked]
            self.checked += len(sample)
            if self.plain(sample) != ids[: len(sample)]:
                self.words = None
                return self.plain(texts)
        return ids


class Words:
    """A sentencepiece BPE, word by word.

    Args:
        model: the tokenizer's model alone: it encodes a word whose spaces are written as `▁`.
        special: the added tokens and their ids; text between them is encoded on its own.
        always: whether each such text gets a `▁` in front, or only one at the very beginning.
    """

    def __init__(self, model: Any, special: dict[str, int], always: bool) -> None:
        self.model, self.special, self.always = model, special, always
        longest_first = sorted(special, key=len, reverse=True)
        self.split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")").split if special else lambda t: [t]
        self.known: dict[str, list[int]] = {}

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Words | None:
        """For a tokenizer that works this way; None for any other."""
        from tokenizers import Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        described = json.loads(backend.to_str())
        model, added = described["model"], described["added_tokens"]
        always = _prefix(described.get("normalizer"), described.get("pre_tokenizer"))
        if model.get("type") != "BPE" or not model.get("byte_fallback") or model.get("ignore_merges") or always is None:
            return None
        if any(token["normalized"] or token["lstrip"] or token["rstrip"] or token["single_word"] for token in added):
            return None
        if any(SPACE_INSIDE.search(piece) for piece in model["vocab"]):
            return None
        described |= {"normalizer": None, "pre_tokenizer": None, "added_tokens": [], "post_processor": None}
        bare = Tokenizer.from_str(json.dumps(described))
        return cls(bare, {token["content"]: token["id"] for token in added}, always)

    def encode(self, text: str) -> list[int]:
        """The ids of one text."""
        ids: list[int] = []
        known = self.known
        for i, part in enumerate(self.split(text)):
            if i % 2:
                ids.append(self.special[part])
                continue
            if not part:
                continue
            part = part.replace(" ", "▁")
            if self.always or (i == 0 and not part.startswith("▁")):
                part = "▁" + part
            for word in WORD.findall(part):
                found = known.get(word)
                ids += self._learn(word) if found is None else found
        return ids

    def _learn(self, word: str) -> list[int]:
        ids: list[int] = self.model.encode(word, add_special_tokens=False).ids
        if len(word) <= LONGEST_WORD:
            if len(self.known) >= MOST_WORDS:
                self.known.clear()
            self.known[word] = ids
        return ids


def _prefix(normalizer: Any, pre_tokenizer: Any) -> bool | None:
    """Whether every part gets a `▁` in front (True) or the first one (False); None for other ways to split text.

    These are the two forms in which sentencepiece models are converted: a normalizer that prepends and replaces, and
    the Metaspace pre-tokenizer.
    """
    if normalizer is None and isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Metaspace":
        plain = pre_tokenizer.get("replacement") == "▁" and pre_tokenizer.get("split") is False
        return False if plain and pre_tokenizer.get("prepend_scheme") == "first" else None
    if pre_tokenizer is None and isinstance(normalizer, dict) and normalizer.get("type") == "Sequence":
        steps = [(step.get("type"), step.get("prepend"), step.get("content")) for step in normalizer["normalizers"]]
        return True if steps == [("Prepend", "▁", None), ("Replace", None, "▁")] else None
    return None
