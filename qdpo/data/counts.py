"""Rows that have something in common: how many, and the first ones by number."""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_ROWS = 5
"""Rows that are named."""


@dataclass
class Counted:
    """Rows that have something in common.

    Attributes:
        count: how many.
        first_rows: the first five by number; `source:number` for a mixture's further datasets.
    """

    count: int = 0
    first_rows: list[int | str] = field(default_factory=list)

    def add(self, row: int | str) -> None:
        """Count a row; the first five are remembered by number."""
        self.count += 1
        if len(self.first_rows) < FIRST_ROWS:
            self.first_rows.append(row)
