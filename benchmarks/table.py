"""Results of `benchmarks.engine` as a table: `python -m benchmarks.table benchmarks/results/FILE.json ...`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = {
    "reference in each step": "packed",
    "reference cached": "packed cached",
    "cached, no checkpointing": "packed cached, no checkpointing",
}
"""Heading: the variant whose step time is shown against stock TRL's."""

MEMORY = "packed cached"
"""The variant whose peak memory is shown."""


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """One row per workload: median ratio of step time to stock TRL's best (lowest to highest of the rounds)."""
    lines = [
        f"| workload | tokens padded → packed | {' | '.join(COLUMNS)} | peak memory | gradient differs by |",
        "| --- " * (4 + len(COLUMNS)) + "|",
    ]
    for record in records:
        for name, result in record["workloads"].items():
            lines.append(f"| {name} | {' | '.join(_cells(result, record['device']))} |")
    return "\n".join([*lines, "", *dict.fromkeys(map(_machine, records))])


def _cells(result: dict[str, Any], device: str) -> list[str]:
    variants, tokens = result["variants"], result["tokens"]
    clock = "cpu" if device == "cpu" else "wall"
    cells = [f"{tokens['padded']:,} → {tokens['packed']:,}"]
    for variant in COLUMNS.values():
        ratio = variants[variant][clock]
        cells.append(f"{ratio['ratio']:.1f}x ({ratio['lowest']:.1f} to {ratio['highest']:.1f})")
    peak = variants[MEMORY].get("peak_ratio")
    cells.append("not measured" if peak is None else f"{peak:.2f}x")
    cells.append(f"{max(variants[variant]['gradient_difference'] for variant in COLUMNS.values()):.0e}")
    return cells


def _machine(record: dict[str, Any]) -> str:
    base, versions = record["base"], record["versions"]
    clock = "processor time" if record["device"] == "cpu" else "wall time"
    storage = "NF4" if base["nf4"] else base["dtype"]
    return (
        f"{record['machine']}, {record['threads']} thread, {clock}; {base['name']}, {storage}, r={base['rank']}; "
        f"TRL {versions['trl']}, torch {versions['torch']}."
    )


def main() -> int:
    """Print the table of the files named on the command line."""
    print(markdown([json.loads(Path(path).read_text()) for path in sys.argv[1:]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
