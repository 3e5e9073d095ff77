"""Near-duplicates by MinHash (Broder 1997): pairs whose words are almost the same."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qdpo.data.pairs import Pair

PERMUTATIONS = 64
BANDS = 8
SHINGLE = 3
"""Words that are compared together."""
THRESHOLD = 0.8
"""Share of common shingles from which two pairs are near-duplicates, as estimated."""
LOOKED_AT = 20_000
"""Pairs that are compared: the first ones, so that time and memory have a bound."""
WORD = re.compile(r"\w+")


def shingles(words: Sequence[str]) -> list[str]:
    """What of a text is compared: all words that follow each other, SHINGLE at a time; fewer words are one."""
    return [" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))]


class NearDuplicates:
    """Counts the pairs that are almost the same as an earlier one."""

    def __init__(self) -> None:
        from rensa import RMinHashLSH

        self.index = RMinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS, num_bands=BANDS)
        self.sketches: list = []
        self.rows: list[int] = []
        self.keys: list[tuple[int, int]] = []
        self.found: list[tuple[int, int]] = []

    def observe(self, pair: Pair, key: tuple[int, int]) -> None:
        """Compare a pair with the earlier ones.

        Args:
            pair: the pair.
            key: identifies its texts; exact duplicates are not counted here.
        """
        if len(self.rows) >= LOOKED_AT:
            return
        from rensa import RMinHash

        words = WORD.findall(" ".join(m.content for m in (*pair.prompt, *pair.chosen, *pair.rejected)).lower())
        sketch = RMinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update(shingles(words))
        for other in self.index.query(sketch):
            if self.keys[other] != key and sketch.jaccard(self.sketches[other]) >= THRESHOLD:
                self.found.append((pair.row, self.rows[other]))
                break
        self.index.insert(len(self.rows), sketch)
        self.sketches.append(sketch)
        self.rows.append(pair.row)
        self.keys.append(key)

    def as_dict(self) -> dict[str, object]:
        """For data_report.json."""
        return {
            "looked_at": len(self.rows),
            "count": len(self.found),
            "threshold": THRESHOLD,
            "examples": [list(rows) for rows in self.found[:5]],
        }
