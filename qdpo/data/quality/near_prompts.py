"""Prompts that are almost the same, in groups: what is learned from one of them answers the others."""

from __future__ import annotations

import array
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from qdpo.data.pairs import Pair
from qdpo.data.quality.duplicates import shingles

BANDS, ROWS = 12, 12
"""Of the MinHash (Broder 1997) by which prompts are found that are worth comparing, as they agree in a band: 98 % of
those at the threshold, 15 % of those that have 70 % in common."""
NEIGHBOURS = 10
"""Prompts that one is compared with for each band; only those that fill in one form have more."""
THRESHOLD = 0.9
"""Share of common shingles from which two prompts are almost the same."""
LOOKED_AT = 20_000
"""Different prompts that are compared: the first ones, so that time and memory have a bound."""
KEPT = 256
"""Shingles of a prompt that are compared, those with the smallest hashes: all of most prompts."""
WORD = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|\w+|[^\w\s.,;:!?\"'’“”()]")
"""A word, a character of a script that has no spaces, or a sign that may make another question: `3 + 4`, `3 - 4`."""
MULTIPLIERS = np.random.default_rng(1).integers(1 << 63, size=ROWS, dtype=np.uint64) | np.uint64(1)
"""What makes one number of a band."""


class NearPrompts:
    """Looks at prompts, of each of which some hashes stay in memory, and finds groups among them."""

    def __init__(self) -> None:
        self.places: dict[int, int] = {}
        self.bands = array.array("I")
        self.shingles = array.array("I")
        self.ends = [0]

    def observe(self, pair: Pair, key: int) -> None:
        """Look at a prompt.

        Args:
            pair: its prompt is looked at, without a system message, which many may have in common.
            key: hash of the prompt up to case, white space and form of characters; each is looked at once.
        """
        if key in self.places or len(self.places) >= LOOKED_AT or not pair.prompt:
            return
        from rensa import RMinHash

        words = WORD.findall(" ".join(said.content for said in pair.prompt if said.role != "system").lower())
        compared = shingles(words)
        sketch = RMinHash(num_perm=BANDS * ROWS, seed=1)
        sketch.update(compared)
        bands = np.array(sketch.digest(), np.uint64).reshape(BANDS, ROWS) @ MULTIPLIERS
        self.bands.frombytes((bands >> np.uint64(32)).astype(np.uint32).tobytes())
        smallest = sorted({zlib.crc32(shingle.encode()) for shingle in compared})[:KEPT]
        self.shingles.extend(smallest)
        self.ends.append(len(self.shingles))
        self.places[key] = len(self.places)

    def groups(self) -> dict[int, int]:
        """Of each prompt that is almost the same as another one, or hangs together with it by others, the key that
        stands for its group."""
        kept = np.frombuffer(self.shingles, np.uint32)
        sets = [kept[start:end] for start, end in zip(self.ends, self.ends[1:], strict=False)]
        parent = list(range(len(sets)))

        def first(place: int) -> int:
            while parent[place] != place:
                parent[place] = place = parent[parent[place]]
            return place

        for one, other in self._worth_comparing():
            mine, theirs = first(one), first(other)
            if mine != theirs and _in_common(sets[one], sets[other]) >= THRESHOLD:
                parent[max(mine, theirs)] = min(mine, theirs)
        keys = list(self.places)
        sizes = Counter(map(first, parent))
        return {key: keys[first(place)] for place, key in enumerate(keys) if sizes[first(place)] > 1}

    def _worth_comparing(self) -> Iterator[tuple[int, int]]:
        """Pairs of places: prompts that agree in a band, of many such prompts those that follow each other."""
        count = len(self.places)
        found = [np.empty(0, np.int64)]
        for band in np.frombuffer(self.bands, np.uint32).reshape(count, BANDS).T:
            order = np.argsort(band, kind="stable")
            for step in range(1, min(NEIGHBOURS, count - 1) + 1):
                same = np.nonzero(band[order[:-step]] == band[order[step:]])[0]
                if not len(same):
                    break
                found.append(order[same] * count + order[same + step])
        return (divmod(int(code), count) for code in np.unique(np.concatenate(found)))

    def as_dict(self, groups: Mapping[int, int]) -> dict[str, int]:
        """For data_report.json: prompts that were compared, groups, prompts in groups, and in the largest one."""
        sizes = Counter(groups.values())
        counts = {"groups": len(sizes), "prompts": sizes.total(), "largest": max(sizes.values(), default=0)}
        return {"looked_at": len(self.places), **counts}


def _in_common(one: np.ndarray, other: np.ndarray) -> float:
    """The share of two sets that is in both; estimated by the smallest hashes where there are more than are kept."""
    both = np.sort(np.concatenate((one, other)))
    twice = both[1:] == both[:-1]
    if max(len(one), len(other)) < KEPT:
        common = np.count_nonzero(twice)
        return common / (len(both) - common)
    smallest = np.unique(both)[:KEPT]
    return np.count_nonzero(both[1:][twice] <= smallest[-1]) / len(smallest)
