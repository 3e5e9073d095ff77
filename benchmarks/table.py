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


BASELINES = {"": "its fastest", "_to_4": "4 pairs at once"}
"""Suffix of the figures: the micro-batch of stock TRL that they compare with."""


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """Two rows per workload: median ratio of step time to stock TRL's (lowest to highest of the rounds)."""
    head = ["workload", "stock TRL", "tokens padded → packed", *COLUMNS, "peak memory", "gradient differs by"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for record in records:
        for name, result in record["workloads"].items():
            for suffix, baseline in BASELINES.items():
                if suffix and result["stock_micro_batch"] == 4:
                    continue
                size = result["stock_micro_batch"]
                what = baseline if suffix else f"{baseline}: {size} {'pair' if size == 1 else 'pairs'} at once"
                base = "NF4, " if record["base"]["nf4"] else ""
                cells = [
                    "" if suffix else f"{name}, {base}rows of {result['budget']:,}",
                    what,
                    *_cells(result, record["device"], suffix),
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *dict.fromkeys(map(_machine, records))])


def _cells(result: dict[str, Any], device: str, suffix: str) -> list[str]:
    variants, tokens = result["variants"], result["tokens"]
    clock = ("cpu" if device == "cpu" else "wall") + suffix
    padded = tokens["padded" + suffix.replace("_to", "")]
    cells = [f"{padded:,} → {tokens['packed']:,}"]
    for variant in COLUMNS.values():
        ratio = variants[variant][clock]
        cells.append(f"{ratio['ratio']:.2f}x ({ratio['lowest']:.2f} to {ratio['highest']:.2f})")
    peak = variants[MEMORY].get("peak_ratio" + suffix)
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
