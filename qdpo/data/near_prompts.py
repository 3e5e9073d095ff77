"""Prompts that are almost the same, in groups: what is learned from one of them answers the others."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from itertools import islice

import numpy as np

from qdpo.data.pairs import Pair

PERMUTATIONS, BANDS = 256, 16
"""Of the MinHash (Broder 1997) by which prompts are found that are worth comparing: 97 % of those at the threshold."""
SHINGLE = 3
"""Words that are compared together."""
THRESHOLD, ESTIMATE = 0.9, 0.87
"""Share of common shingles from which two prompts are almost the same, and from which its estimate is looked into."""
LOOKED_AT = 20_000
"""Different prompts that are compared: the first ones, so that time and memory have a bound."""
CANDIDATES, COMPARED = 1_000, 50
"""Prompts whose sketches one is compared with, and prompts of other groups whose shingles; only those that fill in one
form are close to more."""
KEPT = 512
"""Shingles of a prompt that are compared, those with the smallest hashes: all of most prompts."""
WORD = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|\w+|[^\w\s.,;:!?\"'’“”()]")
"""A word, a character of a script that has no spaces, or a sign that may make another question: `3 + 4`, `3 - 4`."""


class NearPrompts:
    """Groups of prompts that are almost the same."""

    def __init__(self) -> None:
        from rensa import RMinHashLSH

        self.index = RMinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS, num_bands=BANDS)
        self.sketches: list = []
        self.shingles: list[np.ndarray] = []
        self.keys: list[int] = []
        self.parent: dict[int, int] = {}

    def observe(self, pair: Pair, key: int) -> None:
        """Compare a prompt with the earlier ones.

        Args:
            pair: its prompt is compared, without a system message, which many may have in common.
            key: hash of the prompt up to case, white space and form of characters; each is looked at once.
        """
        if key in self.parent or len(self.keys) >= LOOKED_AT or not pair.prompt:
            return
        from rensa import RMinHash

        words = WORD.findall(" ".join(said.content for said in pair.prompt if said.role != "system").lower())
        shingles = [" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))]
        sketch = RMinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update(shingles)
        hashes = np.unique(np.array([zlib.crc32(shingle.encode()) for shingle in shingles], np.uint32))[:KEPT]
        self.parent[key] = key
        close = (
            other for other in self.index.query(sketch)[:CANDIDATES] if sketch.jaccard(self.sketches[other]) >= ESTIMATE
        )
        apart = (other for other in close if self._first(key) != self._first(self.keys[other]))
        for other in islice(apart, COMPARED):
            if _in_common(hashes, self.shingles[other]) >= THRESHOLD:
                self.parent[self._first(key)] = self._first(self.keys[other])
        self.index.insert(len(self.keys), sketch)
        self.sketches.append(sketch)
        self.shingles.append(hashes)
        self.keys.append(key)

    def _first(self, key: int) -> int:
        while self.parent[key] != key:
            self.parent[key] = key = self.parent[self.parent[key]]
        return key

    def as_dict(self) -> dict[str, int]:
        """For data_report.json: prompts that were compared, groups, prompts in groups, and in the largest one."""
        sizes = Counter(self.groups().values())
        counts = {"groups": len(sizes), "prompts": sizes.total(), "largest": max(sizes.values(), default=0)}
        return {"looked_at": len(self.keys), **counts}

    def groups(self) -> dict[int, int]:
        """Of each prompt that is almost the same as another one, the key that stands for its group."""
        first = {key: self._first(key) for key in self.keys}
        sizes = Counter(first.values())
        return {key: group for key, group in first.items() if sizes[group] > 1}


def _in_common(one: np.ndarray, other: np.ndarray) -> float:
    """The share of two sets that is in both; estimated by the smallest hashes where there are more than are kept."""
    both = np.sort(np.concatenate((one, other)))
    twice = both[1:] == both[:-1]
    if max(len(one), len(other)) < KEPT:
        return np.count_nonzero(twice) / (len(both) - np.count_nonzero(twice))
    smallest = np.unique(both)[:KEPT]
    return np.count_nonzero(both[1:][twice] <= smallest[-1]) / len(smallest)
