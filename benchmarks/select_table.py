"""What `benchmarks/select.py` found, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WORDS = {
    "full": "all pairs",
    "steps": "all pairs, as few steps",
    "random": "`random`",
    "length": "`length`",
    "base": "`base`",
    "hard": "`hard`",
    "run": "`run`, after a run on 10 %",
    "new": "`new`, after a run on 10 %",
}


def summary(results: Sequence[dict[str, Any]]) -> str:
    """A table for each set: held-out accuracy and margin, the loss against all pairs, the gain over random ones."""
    return "\n\n".join(_table(result) for result in results)


def _table(result: dict[str, Any]) -> str:
    rows = result["rows"]
    title = (
        f"**{result['set']}** ({result['model']}), {rows['full']['pairs']:,} pairs, {result['heldout']:,} held out, "
        f"{result['epochs']:g} epochs, seed{'s' * (len(result['seeds']) > 1)} {', '.join(map(str, result['seeds']))}:"
    )
    lines = [
        "| chosen by | pairs | held-out accuracy | less than all pairs | over random | margin | time |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for by, row in rows.items():
        seeds = f", {row['seeds']} seed" if row["seeds"] < len(result["seeds"]) else ""
        cells = [WORDS[by] + seeds, f"{row['pairs']:,}", _share(row["accuracy"])]
        cells += [_points(row[key]["accuracy"]) if key in row else "" for key in ("less_full", "less_random")]
        lines.append(f"| {' | '.join(cells)} | {row['margin']['value']:.2f} | {row['processor_time_ratio']:.2f}x |")
    return "\n".join([title, "", *lines])


def _share(found: dict[str, float]) -> str:
    return f"{found['value']:.1%} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def _points(found: dict[str, float]) -> str:
    """A difference of shares in points."""
    return f"{100 * found['value']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"
