"""Token pairs on disk: a sequence like any other whose memory does not grow with the ids.

The ids lie in a file, 4 bytes each; what stays in memory is one record per pair (`RECORD`, 111 bytes).
"""

from __future__ import annotations

import array
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, overload

import numpy as np

from qdpo.data.pairs import TokenPair

RECORD = np.dtype(
    [
        ("row", "<i8"),
        ("start", "<i8"),
        ("prompt", "<i4"),
        ("chosen", "<i4"),
        ("rejected", "<i4"),
        ("source", "<i2"),
        ("cut", "u1"),
        ("prompt_key", "<u8"),
        ("chosen_key", "<u8"),
        ("rejected_key", "<u8"),
        ("loose_key", "<u8"),
        ("group", "<u8"),
        ("chosen_answer", "<u8"),
        ("rejected_answer", "<u8"),
        ("chosen_score", "<f8"),
        ("rejected_score", "<f8"),
        ("chosen_characters", "<i4"),
        ("rejected_characters", "<i4"),
    ]
)
"""Of one pair: number of its row, where its ids start (counted in ids), how many of each part, number of its source,
what was cut (bits, see `CUTS` and `SPECIAL`), hashes of the prompt, of the prompt with each answer, of the prompt up to
case, white space and form of characters, of one of the prompts that are almost the same, and of each answer alone,
scores or NaN, characters of the answers before anything was cut."""
CUTS = {"prompt": 1, "chosen": 2, "rejected": 4, "boundary": 8, "system message": 32}
SPECIAL = 16
"""Of a pair that spells out special tokens, which were encoded as text."""
ITEM = 4
"""Bytes of one id."""


class TokenPairs(Sequence[TokenPair]):
    """Pairs in a file.

    Args:
        file: the ids, opened for reading in binary; shared by all views.
        records: of `RECORD`, one per pair of the file.
        order: which pairs this sequence has, in which order; a pair may occur twice.
    """

    def __init__(self, file: IO[bytes], records: np.ndarray, order: np.ndarray | None = None) -> None:
        self.file = file
        self.all_records = records
        self.order = np.arange(len(records)) if order is None else order

    @property
    def records(self) -> np.ndarray:
        """The records of this sequence's pairs."""
        return self.all_records[self.order]

    def select(self, order: np.ndarray) -> TokenPairs:
        """A view: the pairs at these places of the file."""
        return TokenPairs(self.file, self.all_records, order)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[TokenPair]:
        return map(self._read, self.order)

    @overload
    def __getitem__(self, index: int) -> TokenPair: ...
    @overload
    def __getitem__(self, index: slice) -> TokenPairs: ...
    def __getitem__(self, index: int | slice) -> TokenPair | TokenPairs:
        if isinstance(index, slice):
            return self.select(self.order[index])
        return self._read(self.order[index])

    def __add__(self, other: TokenPairs) -> TokenPairs:
        if other.file is self.file:
            return self.select(np.concatenate([self.order, other.order]))
        raise ValueError("only views of one file can be joined")

    def _read(self, place: Any) -> TokenPair:
        record = self.all_records[place]
        prompt, chosen, rejected = int(record["prompt"]), int(record["chosen"]), int(record["rejected"])
        size = (prompt + chosen + rejected) * ITEM
        # pread, not a memory map: mapped pages would count as this process's memory
        data = os.pread(self.file.fileno(), size, int(record["start"]) * ITEM)
        ids = array.array("i", data).tolist()
        return TokenPair(int(record["row"]), ids[:prompt], ids[prompt : prompt + chosen], ids[prompt + chosen :])


class Builder:
    """Writes pairs into a temporary file, which vanishes with the process."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile(prefix="qdpo-tokens-")  # noqa: SIM115 (it lives as long as the pairs)
        self.packed = bytearray()
        self.start = 0

    def add(
        self,
        pair: TokenPair,
        *,
        source: int = 0,
        cuts: Iterable[str] = (),
        keys: tuple[int, int, int, int] = (0, 0, 0, 0),
        answers: tuple[int, int] = (0, 0),
        scores: tuple[float, float] | None = None,
        characters: tuple[int, int] = (0, 0),
    ) -> None:
        """Append a pair."""
        self.file.write(array.array("i", pair.prompt + pair.chosen + pair.rejected).tobytes())
        lengths = len(pair.prompt), len(pair.chosen), len(pair.rejected)
        flags = sum(SPECIAL if kind == "special" else CUTS[kind] for kind in cuts)
        what = pair.row, self.start, *lengths, source, flags
        record = (*what, *keys, keys[-1], *answers, *(scores or (math.nan,) * 2), *characters)
        self.packed += np.array(record, RECORD).tobytes()
        self.start += sum(lengths)

    def __len__(self) -> int:
        return len(self.packed) // RECORD.itemsize

    def finish(self, groups: Mapping[int, int] | None = None) -> TokenPairs:
        """All pairs, in the order in which they came.

        Args:
            groups: of prompts, by the last of their keys, what those that are almost the same have in common.
        """
        self.file.flush()
        records = np.frombuffer(bytearray(self.packed), RECORD)
        if groups:
            keys = np.sort(np.array(list(groups), np.uint64))
            values = np.array([groups[key] for key in keys.tolist()], np.uint64)
            places = np.minimum(np.searchsorted(keys, records["loose_key"]), len(keys) - 1)
            known = keys[places] == records["loose_key"]
            records["group"][known] = values[places[known]]
        return TokenPairs(self.file, records)
