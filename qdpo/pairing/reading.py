"""Reading rows one by one: what each says, and what is wrong with those that say nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from qdpo import console
from qdpo.data.faults import FaultyRows
from qdpo.data.pieces import BadRow, type_in_words
from qdpo.data.readers import Broken
from qdpo.data.report import DataReport
from qdpo.data.rows import example_of

DROP = "fix the rows, or leave them out: --drop-bad-rows"
Said = TypeVar("Said")


def understood(
    rows: Iterable[tuple[int, Any]], report: DataReport, read: Callable[[dict[str, Any]], Said]
) -> Iterator[Said]:
    """What rows say; those that cannot be used, or say nothing (`Tie`), go to the report.

    Args:
        rows: number and row; a row that is a text is one with the column `prompt`.
        report: is filled in.
        read: raises `BadRow`.
    """
    for number, row in rows:
        try:
            if isinstance(row, Broken):
                raise BadRow(row.reason, row.fix, example=row.example)
            if isinstance(row, str):
                row = {"prompt": row}
            if not isinstance(row, dict):
                raise BadRow(f"the row is {type_in_words(row)}, expected an object with columns", "write an object")
            yield read(row)
        except BadRow as bad:
            report.leave_out(number, bad, bad.field, partial(example_of, row, bad))


def settle(report: DataReport, drop: bool) -> None:
    """Say which rows are at fault, when all were read.

    Args:
        report: of the rows.
        drop: they are left out.

    Raises:
        FaultyRows: there are such rows, and they are not to be left out.
    """
    if report.faults:
        error = FaultyRows([report], DROP)
        if not drop:
            raise error
        console.warn(f"left out: {error.message}")
        console.talk().print(error.details())
