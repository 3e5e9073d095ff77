"""A text's ids word by word, each different word encoded once: for vocabularies whose merges never cross words.

In a sentencepiece BPE (Llama 2, Mistral) no piece has a space inside; a byte-level BPE (`qdpo.data.bytewords`) cuts
texts by a pattern before it merges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

MOST_WORDS = 200_000
"""Words that are remembered; then the memory is emptied."""
LONGEST_WORD = 64
"""Characters of a word that is worth remembering."""
WORD = re.compile("▁*[^▁]+|▁+")
SPACE_INSIDE = re.compile("[^▁]▁")


class Words:
    """A vocabulary, word by word.

    Args:
        model: encodes a word alone.
        special: the added tokens and their ids; text between them is encoded on its own.
        cut: cuts such a text into words; is told whether it is the first one.
        trusts: whether a word that was not seen before is surely one.
    """

    def __init__(
        self,
        model: Tokenizer,
        special: dict[str, int],
        cut: Callable[[str, bool], Sequence[str]],
        trusts: Callable[[str], bool] = lambda word: True,
    ) -> None:
        self.model, self.special, self.cut, self.trusts = model, special, cut, trusts
        longest_first = sorted(special, key=len, reverse=True)
        self.split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")").split if special else lambda t: [t]
        self.known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int] | None:
        """The ids of one text; None where a word of it is not to be trusted."""
        ids: list[int] = []
        known = self.known
        for i, part in enumerate(self.split(text)):
            if i % 2:
                ids.append(self.special[part])
                continue
            if not part:
                continue
            for word in self.cut(part, i == 0):
                found = known.get(word)
                if found is None:
                    if not self.trusts(word):
                        return None
                    found = self._learn(word)
                ids += found
        return ids

    def _learn(self, word: str) -> list[int]:
        ids: list[int] = self.model.encode(word, add_special_tokens=False).ids
        if len(word) <= LONGEST_WORD:
            if len(self.known) >= MOST_WORDS:
                self.known.clear()
            self.known[word] = ids
        return ids


def bpe_of(tokenizer: PreTrainedTokenizerBase) -> tuple[Tokenizer, dict[str, int]] | None:
    """A BPE tokenizer as it works, and its added tokens with their ids.

    None for any other, for one that draws its merges, and where an added token is more than its own text.
    """
    from tokenizers.models import BPE

    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, BPE) or backend.model.dropout:
        return None
    if getattr(tokenizer, "split_special_tokens", False):
        return None
    added = backend.get_added_tokens_decoder()
    normalises = backend.normalizer is not None
    if any(
        token.lstrip or token.rstrip or token.single_word or token.normalized & normalises for token in added.values()
    ):
        return None
    return backend, {token.content: number for number, token in added.items()}


def settings_of(step: Any) -> dict[str, Any]:
    """A normalizer or pre-tokenizer as tokenizer.json has it; empty where there is none."""
    return {} if step is None else json.loads(step.__getstate__())


def sentencepiece_words(tokenizer: PreTrainedTokenizerBase) -> Words | None:
    """For a sentencepiece BPE; None for any other tokenizer."""
    from tokenizers import Tokenizer

    found = bpe_of(tokenizer)
    if found is None:
        return None
    backend, special = found
    model: Any = backend.model
    always = _prefix(settings_of(backend.normalizer), settings_of(backend.pre_tokenizer))
    if always is None or not model.byte_fallback or model.ignore_merges:
        return None
    if any(SPACE_INSIDE.search(piece) for piece in backend.get_vocab(with_added_tokens=False)):
        return None

    def cut(part: str, first: bool) -> list[str]:
        part = part.replace(" ", "▁")
        return WORD.findall("▁" + part if always or (first and not part.startswith("▁")) else part)

    return Words(Tokenizer(model), special, cut)


def _prefix(normalizer: dict[str, Any], pre_tokenizer: dict[str, Any]) -> bool | None:
    """Whether every part gets a `▁` in front (True) or the first one (False); None for other ways to split text.

    These are the two forms in which sentencepiece models are converted: a normalizer that prepends and replaces, and
    the Metaspace pre-tokenizer.
    """
    if not normalizer and pre_tokenizer.get("type") == "Metaspace":
        plain = pre_tokenizer.get("replacement") == "▁" and pre_tokenizer.get("split") is False
        return False if plain and pre_tokenizer.get("prepend_scheme") == "first" else None
    if not pre_tokenizer and normalizer.get("type") == "Sequence":
        steps = [(step.get("type"), step.get("prepend"), step.get("content")) for step in normalizer["normalizers"]]
        return True if steps == [("Prepend", "▁", None), ("Replace", None, "▁")] else None
    return None
