"""The error for rows that cannot be used: a table of all kinds of faults, and what else is odd about the data."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from qdpo.data.report import DataReport, LeftOut
from qdpo.errors import DataError
from qdpo.foreign import visible
from qdpo.grammar import counted

SOME_BAD = "fix the rows, or set data.on_bad_row=drop to leave them out (they are counted in the report and the card)"
ALL_BAD = "no row can be used: check data.columns, data.format, data.max_length, and the file"
WIDTH = 100
"""Columns of the table in Python's text of the error."""
KINDS = 20
"""Kinds of faults that are shown."""


class FaultyRows(DataError):
    """Rows cannot be used; says how many, which, why, and what to do about each kind.

    Args:
        reports: on what was read; those without faults are passed over.
        hint: the way out for all of them, where there is another than `data.on_bad_row`.
    """

    def __init__(self, reports: Sequence[DataReport], hint: str | None = None) -> None:
        self.reports = [report for report in reports if _shown(report)]
        none_left = any(map(_nothing_left, self.reports))
        super().__init__(" and ".join(map(_counted, self.reports)), hint or (ALL_BAD if none_left else SOME_BAD))

    def details(self) -> Group:
        """The tables."""
        return Group(*(part for report in self.reports for part in _parts(report, len(self.reports) > 1)))

    def __str__(self) -> str:
        stream = io.StringIO()
        Console(file=stream, width=WIDTH, markup=False, highlight=False, no_color=True).print(self.details())
        lines = [line.rstrip() for line in stream.getvalue().splitlines()]
        return visible("\n".join([self.message, *lines, f"hint: {self.hint}"]))


def _counted(report: DataReport) -> str:
    count = sum(left.count for _, left in _shown(report))
    kinds = len(_shown(report))
    what = f"{count:,} of {counted(report.rows_read, 'row')} of {report.source} cannot be used"
    return what + (f", for {kinds} reasons" if kinds > 1 else "")


def _nothing_left(report: DataReport) -> bool:
    return sum(left.count for left in report.left_out.values()) == report.rows_read


def _shown(report: DataReport) -> list[tuple[str, LeftOut]]:
    """The faults; all reasons where nothing is left."""
    return [(reason, left) for reason, left in report.reasons if _nothing_left(report) or not left.inherent]


def _parts(report: DataReport, named: bool) -> list[Table | Text]:
    """The table of one report, the first row of each kind, and what is odd."""
    found = _shown(report)
    title = f"rows are named by their {'lines in the file' if report.unit == 'line' else 'place'}, counted from 1"
    title = f"{report.source}: {title}" if named else title
    table = Table(
        title=Text(title), title_justify="left", title_style="", box=None, padding=(0, 2, 0, 0), pad_edge=False
    )
    table.add_column("rows", justify="right", no_wrap=True)
    for column, ratio in (("field", None), ("what is wrong", 5), ("how to fix it", 4), (f"{report.unit}s", 3)):
        table.add_column(column, ratio=ratio, overflow="fold", min_width=8)
    for reason, left in found[:KINDS]:
        what = Text(reason.removeprefix(f"`{left.field}` "))
        where = ", ".join(map(str, left.first_rows)) + (", ..." if left.count > len(left.first_rows) else "")
        table.add_row(f"{left.count:,}", Text(left.field), what, Text(left.fix), Text(where))
    parts: list[Table | Text] = [table]
    if len(found) > KINDS:
        rest = sum(left.count for _, left in found[KINDS:])
        parts.append(Text(f"and {counted(len(found) - KINDS, 'more reason')}, {counted(rest, 'row')}"))
    parts += [
        Text(f"{report.unit} {left.first_rows[0]}: {left.example}", overflow="fold", style="dim")
        for _, left in found[:KINDS]
        if left.example
    ]
    return parts + [Text.assemble(("also ", "yellow"), remark) for remark in report.remarks()]
