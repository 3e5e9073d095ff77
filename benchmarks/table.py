"""Results of `benchmarks.engine` as tables: `python -m benchmarks.table benchmarks/results/FILE.json ...`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

VARIANTS = ("packed", "packed cached", "packed cached, no checkpointing")
"""What is shown: with the reference in each step, with the reference cached, and cached without checkpointing."""

PEERS = {"TRL": "as it is", "TRL, stand-in head": "stand-in head"}
"""Peers by their name in the results, and in the tables."""


def summary(records: Sequence[dict[str, Any]]) -> str:
    """One row per workload: how many times as fast as each peer, and the share of its memory."""
    head = ["workload"]
    for peer in PEERS.values():
        head += [f"TRL {peer}", "of its memory"]
    rows = []
    for name, result, record in _workloads(records):
        cells = [_name(name, result, record)]
        for peer in PEERS:
            cells += _short(result, record["device"], peer) if peer in result["micro_batch"] else ["not run", ""]
        rows.append(cells)
    return "\n".join([_table(head, rows), "", *_notes(records)])


def details(records: Sequence[dict[str, Any]]) -> str:
    """One row per workload and peer: ratios with their range, memory, tokens, gradients."""
    speed, memory = ["each step", "cached", "unchecked"], ["memory: each step", "cached", "unchecked"]
    head = ["workload", "TRL", "tokens padded → packed", *speed, *memory, "gradient differs by", "rounds"]
    rows = []
    for name, result, record in _workloads(records):
        for peer, size in result["micro_batch"].items():
            variants = [result["variants"][variant] for variant in VARIANTS]
            against = [variant["against"][peer] for variant in variants]
            clock = _clock(record["device"])
            ratios = [
                f"{a[clock]['ratio']:.2f}x ({a[clock]['lowest']:.2f} to {a[clock]['highest']:.2f})" for a in against
            ]
            peaks = [f"{a['peak_ratio']:.2f}x" if "peak_ratio" in a else "not measured" for a in against]
            rows.append(
                [
                    _name(name, result, record),
                    f"{PEERS[peer]}, {size} {'pair' if size == 1 else 'pairs'} at once",
                    f"{result['tokens']['padded'][peer]:,} → {result['tokens']['packed']:,}",
                    *ratios,
                    *peaks,
                    f"{max(variant['gradient_difference'] for variant in variants):.0e}",
                    str(len(variants[0][clock]["all"])),
                ]
            )
    return "\n".join([_table(head, rows), "", *_notes(records)])


def sentence(records: Sequence[dict[str, Any]], workload: str) -> str:
    """TRL's time for one step of a workload beside qdpo's, the reference in each step of both, and where."""
    ((name, result, record),) = (found for found in _workloads(records) if found[0] == workload)
    clock = _clock(record["device"])
    packed = result["variants"][VARIANTS[0]]
    stock, head = (packed["against"][peer][clock] for peer in PEERS)
    return (
        f"One optimizer step on {result['pairs']} pairs of {name}: TRL {record['versions']['trl']} takes "
        f"{stock['ratio']:.1f} times as long as qdpo ({stock['lowest']:.1f} to {stock['highest']:.1f} in "
        f"{len(packed[clock]['all'])} interleaved rounds), and {head['ratio']:.1f} times ({head['lowest']:.1f} to "
        f"{head['highest']:.1f}) with a head that scores completion tokens only, as its GPU kernel does "
        f"({record['base']['name']}, {record['base']['dtype']}, {record['threads']} thread of an {record['machine']})."
    )


def _workloads(records: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for record in records:
        for name, result in record["workloads"].items():
            yield name, result, record


def _short(result: dict[str, Any], device: str, peer: str) -> list[str]:
    against = [result["variants"][variant]["against"][peer] for variant in VARIANTS]
    ratios = " / ".join(f"{a[_clock(device)]['ratio']:.2f}x" for a in against)
    peaks = " / ".join(f"{a['peak_ratio']:.2f}x" if "peak_ratio" in a else "?" for a in against)
    return [ratios, peaks]


def _name(name: str, result: dict[str, Any], record: dict[str, Any]) -> str:
    return f"{name}{', NF4' if record['base']['nf4'] else ''}, rows of {result['budget']:,}"


def _clock(device: str) -> str:
    return "cpu" if device == "cpu" else "wall"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    return "\n".join(lines + [f"| {' | '.join(cells)} |" for cells in rows])


def _notes(records: Sequence[dict[str, Any]]) -> list[str]:
    """Machines and versions, and what was not run and why, each once."""
    missing = [f"Not run: {reason}." for record in records for reason in record["not_run"].values()]
    return list(dict.fromkeys([*map(_machine, records), *missing]))


def _machine(record: dict[str, Any]) -> str:
    base, versions = record["base"], record["versions"]
    clock = "processor time" if record["device"] == "cpu" else "wall time"
    storage = "NF4" if base["nf4"] else base["dtype"]
    return (
        f"{record['machine']}, {record['threads']} thread, {clock}; {base['name']}, {storage}, r={base['rank']}; "
        f"TRL {versions['trl']}, torch {versions['torch']}."
    )


def main() -> int:
    """Print both tables of the files named on the command line."""
    records = [json.loads(Path(path).read_text()) for path in sys.argv[1:]]
    print(summary(records), details(records), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
