"""Reading rows one by one: what each says, and what is wrong with those that say nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from qdpo import console
from qdpo.data.pieces import BadRow, Tie
from qdpo.data.prepare import bad_rows
from qdpo.data.readers import Broken
from qdpo.data.report import DataReport
from qdpo.errors import DataError

DROP = "fix the rows, or leave them out: --drop-bad-rows"
Said = TypeVar("Said")


def understood(
    rows: Iterable[tuple[int, Any]], report: DataReport, read: Callable[[int, dict[str, Any]], Said]
) -> Iterator[Said]:
    """What rows say; those that cannot be used, or say nothing (`Tie`), go to the report.

    Args:
        rows: number and row; a row that is a text is one with the column `prompt`.
        report: is filled in.
        read: raises `BadRow`.
    """
    for place, row in rows:
        try:
            if isinstance(row, Broken):
                raise BadRow(row.reason)
            if isinstance(row, str):
                row = {"prompt": row}
            if not isinstance(row, dict):
                raise BadRow(f"the row is {type(row).__name__}, expected an object with columns")
            yield read(place, row)
        except BadRow as bad:
            detail = row.detail if isinstance(row, Broken) else ""
            report.leave_out(place, str(bad), inherent=isinstance(bad, Tie), detail=detail)


def settle(report: DataReport, drop: bool) -> None:
    """Say which rows are at fault, when all were read.

    Args:
        report: of the rows.
        drop: they are left out.

    Raises:
        DataError: there are such rows, and they are not to be left out.
    """
    if report.faults:
        error = bad_rows(report)
        if not drop:
            raise DataError(error.message, DROP)
        console.warn(f"left out: {error.message}")
