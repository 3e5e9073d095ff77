"""What a known shape of rows is: by which columns it is known, and how a row of it becomes the parts of a pair."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qdpo.data.pairs import Message
from qdpo.data.pieces import BadRow, Row, same_answers

Draw = Callable[[int], int]
"""A seeded choice of 0..n-1 for one row."""
Parts = tuple[list[Message], list[Message], list[Message], tuple[float, float] | None]
"""Prompt, chosen, rejected, scores of the two."""
Numbered = Iterable[tuple[int, Any]]

LARGEST_GROUP = 1_000
"""Rows in a row with one key that are held in memory together."""
MEMBERS = "rows"
"""The column of a group that holds its rows."""


@dataclass(frozen=True)
class Format:
    """A shape of rows.

    Attributes:
        name: the value of data.format.
        columns: the columns that it needs.
        read: turns a row into its parts; `draw` decides which answer is the rejected one where several could be.
        used_by: datasets and tools whose rows have this shape, for the documentation.
        described: how the columns are named in the reason, where not by their names alone.
        known: decides in place of the columns; returns why a row has this shape, or None if it has not.
        by_score: whether chosen and rejected are decided here, by scores: a tie then makes no pair (`data.ties: auto`).
        drawn: whether the rejected answer may be drawn, by the place of the row.
        grouped_by: rows one after another for which this is the same are one item, `{"rows": [...]}`.
        doubt: in which way the first rows could be read in two ways, and what to do; None where they cannot.
        split: makes the items, each of which is read, of a row or a group.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Row, Draw], Parts]
    used_by: str
    described: str | Callable[[Row], str] = ""
    known: Callable[[Row], str | None] | None = None
    by_score: bool = False
    drawn: bool = False
    grouped_by: Callable[[Row], Hashable] | None = None
    doubt: Callable[[Sequence[Row]], tuple[str, str] | None] | None = None
    split: Callable[[Row], list[dict[str, Any]]] | None = None

    def known_by(self, row: Row) -> str | None:
        """Why a row has this shape, or None if it has not."""
        if self.known is not None:
            return self.known(row)
        if not row.keys() >= set(self.columns):
            return None
        said = self.described(row) if callable(self.described) else self.described
        return f"columns {said or ', '.join(self.columns)}"

    def items(self, rows: Numbered) -> Iterator[tuple[int, Any]]:
        """What is read, each with the number of the (first) row that it comes from; rows that are no objects stay."""
        grouped = rows if self.grouped_by is None else _groups(rows, self.grouped_by)
        for number, row in grouped:
            if self.split is None or not isinstance(row, dict):
                yield number, row
                continue
            try:
                found: list[Any] = self.split(row)
            except BadRow as bad:
                found = [bad]
            yield from ((number, item) for item in found)


def _groups(rows: Numbered, key: Callable[[Row], Hashable]) -> Iterator[tuple[int, Any]]:
    group: list[tuple[int, Any]] = []
    for number, row in rows:
        if not isinstance(row, dict):
            yield number, row
            continue
        if group and (key(group[0][1]) != key(row) or len(group) >= LARGEST_GROUP):
            yield group[0][0], {MEMBERS: [member for _, member in group]}
            group = []
        group.append((number, row))
    if group:
        yield group[0][0], {MEMBERS: [member for _, member in group]}


def first_of(row: Row, names: Iterable[str]) -> str | None:
    """The first of some columns that a row has."""
    return next((name for name in names if name in row), None)


def best_and_another(
    scored: list[tuple[float, list[Message]]], draw: Draw
) -> tuple[tuple[float, list[Message]], tuple[float, list[Message]]]:
    """The best of two scored answers or more, and one of those that say something else, drawn.

    As Zephyr did with UltraFeedback (arXiv 2310.16944, section 3).

    Raises:
        BadRow: all of them say the same.
    """
    best = max(scored, key=lambda entry: entry[0])
    others = [entry for entry in scored if entry[1] != best[1]]
    if not others:
        raise same_answers()
    return best, others[draw(len(others))]
