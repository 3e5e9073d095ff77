"""What was read, what was left out and why, what was cut, and how long things are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qdpo.data.pairs import TokenPair

FIRST_ROWS = 5


@dataclass
class LeftOut:
    """Rows left out for one reason.

    Attributes:
        count: how many.
        first_rows: the first five by number.
        inherent: the rows are not at fault: the limits or a tie leave them out.
    """

    count: int = 0
    first_rows: list[int] = field(default_factory=list)
    inherent: bool = False

    def add(self, row: int) -> None:
        """Count a row; the first five are remembered by number."""
        self.count += 1
        if len(self.first_rows) < FIRST_ROWS:
            self.first_rows.append(row)


@dataclass
class DataReport:
    """The report on one split.

    Attributes:
        source: dataset name and split.
        format: how rows were read, and why.
        rows_read: rows in the source.
        pairs: rows that became pairs.
        left_out: by reason.
        cut: completions and prompts that were cut to length, by kind.
        tokens: lengths in tokens by part: min, median, p95, max.
    """

    source: str
    format: str = ""
    format_reason: str = ""
    rows_read: int = 0
    pairs: int = 0
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, dict[str, int]] = field(default_factory=dict)

    def leave_out(self, row: int, reason: str, *, inherent: bool = False) -> None:
        """Count a row that did not become a pair."""
        self.left_out.setdefault(reason, LeftOut(inherent=inherent)).add(row)

    @property
    def faults(self) -> int:
        """Rows that are left out because something is wrong with them."""
        return sum(left.count for left in self.left_out.values() if not left.inherent)

    def measure(self, pairs: Sequence[TokenPair]) -> None:
        """Fill in the number of pairs and their lengths."""
        self.pairs = len(pairs)
        for part in ("prompt", "chosen", "rejected"):
            lengths = sorted(len(getattr(pair, part)) for pair in pairs)
            if lengths:
                self.tokens[part] = {
                    "min": lengths[0],
                    "median": lengths[len(lengths) // 2],
                    "p95": lengths[int(0.95 * (len(lengths) - 1))],
                    "max": lengths[-1],
                }

    def as_dict(self) -> dict[str, Any]:
        """For data_report.json."""
        return {
            "source": self.source,
            "format": self.format,
            "format_reason": self.format_reason,
            "rows_read": self.rows_read,
            "pairs": self.pairs,
            "left_out": {
                reason: {"count": left.count, "first_rows": left.first_rows} for reason, left in self.left_out.items()
            },
            "cut": self.cut,
            "tokens": self.tokens,
        }

    def summary(self) -> list[str]:
        """A few lines for the terminal."""
        lines = [
            f"{self.source}: {self.pairs:,} pairs of {self.rows_read:,} rows, {self.format} ({self.format_reason})"
        ]
        lines += [
            f"  left out {left.count:,}: {reason} (first rows: {', '.join(map(str, left.first_rows))})"
            for reason, left in sorted(self.left_out.items(), key=lambda item: -item[1].count)
        ]
        cuts = [f"{count:,} {kind}" for kind, count in self.cut.items() if count and kind != "boundary"]
        if cuts:
            lines.append(f"  cut to length: {', '.join(cuts)}")
        if self.tokens:
            lengths = [f"{part} {t['median']} (max {t['max']})" for part, t in self.tokens.items()]
            lines.append(f"  median tokens: {', '.join(lengths)}")
        return lines
