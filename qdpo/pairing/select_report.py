"""A selection in words: a short table for the terminal, and a JSON object with the reason of each row left out.

The object (`qdpo pairs select --report FILE`):

    schema            1
    kind              select
    source, out       the file, and the new one
    by, seed          the criteria; what breaks ties
    rows, pairs       rows of the file, and those of them that can be used
    asked, kept       pairs that were to be kept, and that are
    left_out          rows by reason
    before, after     of all usable pairs and of those kept: pairs, chosen_characters, rejected_characters (means),
                      chosen_longer (share), and as far as they are known score_margin, base_margin, run_margin (means)
    unit              what a row's number counts, from 1: line, where the file has lines, or row
    rows_left_out     row (its number), reason, why, and its measures: each criterion's value, the highest kept first
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qdpo.grammar import agreed, counted
from qdpo.pairing.select import Selection

if TYPE_CHECKING:
    from rich.table import Table

LINES = {
    "pairs": ("pairs", ",d"),
    "chosen_characters": ("characters of chosen, mean", ",.0f"),
    "rejected_characters": ("characters of rejected, mean", ",.0f"),
    "chosen_longer": ("chosen is the longer one", ".1%"),
    "score_margin": ("score of chosen over rejected", ".2f"),
    "base_margin": ("base: nats a token, chosen over rejected", "+.3f"),
    "run_margin": ("run: nats, margin over its base", "+.2f"),
}
"""What is compared before and after: its words, its form."""


def as_dict(selection: Selection, source: str, out: str, seed: int) -> dict[str, Any]:
    """The object above."""
    measured = selection.measured
    return {
        "schema": 1,
        "kind": "select",
        "source": source,
        "out": out,
        "by": list(selection.by),
        "seed": seed,
        "unit": measured.unit,
        "rows": measured.total,
        "pairs": len(measured.rows),
        "asked": selection.asked,
        "kept": len(selection.rows),
        "left_out": selection.counts,
        "before": means(selection, np.ones(len(measured.rows), bool)),
        "after": means(selection, np.isin(measured.rows, selection.rows)),
        "rows_left_out": [
            {"row": left.row, "reason": left.kind, "why": left.why, **left.values} for left in selection.left_out
        ],
    }


def means(selection: Selection, part: np.ndarray) -> dict[str, float]:
    """What `LINES` names, of a part of the usable pairs.

    Args:
        selection: of n usable pairs.
        part: (n,) which of them.
    """
    measured = selection.measured
    chosen, rejected = measured.characters[part].T
    found: dict[str, float] = {"pairs": int(part.sum())}
    if not part.any():
        return found
    found |= {
        "chosen_characters": float(chosen.mean()),
        "rejected_characters": float(rejected.mean()),
        "chosen_longer": float((chosen > rejected).mean()),
    }
    scores = measured.scores[part]
    scored = ~np.isnan(scores).any(1)
    if scored.any():
        found["score_margin"] = float((scores[scored, 0] - scores[scored, 1]).mean())
    for name, column in (("base_margin", measured.base), ("run_margin", measured.run)):
        if column is not None:
            found[name] = float(column[part].mean())
    return found


def tables(selection: Selection) -> list[Table]:
    """Before and after, and what was left out by reason."""
    every = np.ones(len(selection.measured.rows), bool)
    kept = np.isin(selection.measured.rows, selection.rows)
    columns = [means(selection, part) for part in (every, kept, ~kept)]
    compared = _table("", "all usable", "kept", "left out")
    for key, (words, form) in LINES.items():
        if key in columns[0]:
            compared.add_row(words, *(format(column[key], form) if key in column else "" for column in columns))
    if not selection.left_out:
        return [compared]
    reasons = _table("left out, and why", "rows", f"first {selection.measured.unit}s")
    for reason, count in selection.counts.items():
        first = [left.row for left in selection.left_out if reason in (left.kind, f"{left.kind}: {left.why}")][:3]
        reasons.add_row(_text(reason), f"{count:,}", ", ".join(f"{row:,}" for row in first))
    return [compared, reasons]


def remarks(selection: Selection) -> list[str]:
    """What a user should know besides, one sentence each."""
    said, measured = [], selection.measured
    left = len(selection.rows)
    if left < selection.asked:
        what = counted(selection.asked, "pair was", "pairs were")
        said.append(f"{what} asked for, {left:,} {agreed(left, 'is', 'are')} left to keep")
    if "duplicates" in selection.by and measured.looked_at < len(measured.rows):
        said.append(
            f"near-duplicates were looked for among the first {measured.looked_at:,} pairs, exact ones among all"
        )
    if "score" in selection.by:
        wrong = measured.scores[:, 0] < measured.scores[:, 1]
        if wrong.any():
            kept = int(wrong[np.isin(measured.rows, selection.rows)].sum())
            what = counted(int(wrong.sum()), "pair has", "pairs have")
            said.append(f"{what} the lower score on the chosen side; {kept:,} of them {agreed(kept, 'is', 'are')} kept")
    return said


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _text(said: str) -> Any:
    """Words of the data, which are no markup."""
    from rich.text import Text

    return Text(said)
