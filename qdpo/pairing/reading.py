"""Reading rows one by one: what each says, and what is wrong with those that say nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from qdpo import console
from qdpo.data.faults import FaultyRows
from qdpo.data.pieces import BadRow
from qdpo.data.report import DataReport
from qdpo.data.rows import example_of, with_columns

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
            if isinstance(row, str):
                row = {"prompt": row}
            yield read(with_columns(row, "write an object"))
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
