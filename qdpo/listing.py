"""Rows of facts: a table where the screen is wide enough for it, else a block a row with one fact a line.

Names are never broken into pieces to fit a column. A pipe or a file has no width and gets the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from qdpo import notebook

UNBOUNDED = 100_000


class Listing:
    """Facts in columns.

    Args:
        columns: their names; the first one names the row.
        rows: a cell a column; a row may end early.
        texts: how many of the first columns are texts, to be aligned on the left.
        title: above it.
    """

    def __init__(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, texts: int = 1, title: str = ""
    ) -> None:
        self.columns, self.texts, self.title = columns, texts, title
        self.rows = [[str(cell) for cell in row] for row in rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title:
            yield Text(self.title, style="italic")
        table = self._table()
        needed = Measurement.get(console, options.update(width=UNBOUNDED), table).maximum
        if needed <= options.max_width:
            yield table
        elif console.is_terminal or notebook.is_here():
            for row in self.rows:
                yield from self._block(row)
        else:
            yield from console.render(table, options.update(width=needed))

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for number, column in enumerate(self.columns):
            table.add_column(Text(column), justify="left" if number < self.texts else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def _block(self, row: Sequence[str]) -> Iterator[Text]:
        yield Text(row[0], style="bold", overflow="fold")
        width = max(map(len, self.columns[1:]), default=0)
        for column, cell in list(zip(self.columns, row, strict=False))[1:]:
            if cell:
                yield Text(f"  {column:<{width}}  {cell}", overflow="fold")
