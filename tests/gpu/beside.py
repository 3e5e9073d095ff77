"""Tokens a second of whole runs beside one another: the same pairs in the same order, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpu.runs import Done, configured
from gpu.timed import WARM_UP

from qdpo.config.resolve import Resolved

PEERS: dict[str, dict[str, tuple[str, ...]]] = {
    "TRL": {"TRL": ("engine=trl",)},
    "unsloth": {
        "unsloth, TRL's engine": ("backend=unsloth", "engine=trl"),
        "unsloth, packed": ("backend=unsloth",),
    },
}
"""By peer: its runs, as `--set` takes them."""


def in_turns(
    base: Path,
    data: tuple[Path, Path],
    folder: Path,
    sides: Mapping[str, tuple[str, ...]],
    make: Callable[[Resolved, Path], Done],
    rounds: int,
    steps: int,
    *overrides: str,
    skip: int = WARM_UP,
) -> dict[str, Any]:
    """Run every side, A B C A B C, so that a change of the machine's speed meets all of them.

    Args:
        base: the model's folder.
        data: training and held-out pairs.
        folder: for the runs.
        sides: by name, their settings.
        make: trains; in a process of its own where a side changes libraries for all.
        rounds: turns.
        steps: optimizer steps of a run.
        overrides: settings of all sides.
        skip: steps at the beginning that are left out.

    Returns:
        Of each side the tokens of a run (prompts twice, padding not counted), and their number a second: the median
        of the steps of each turn, and of the turns.
    """
    found: dict[str, dict[str, Any]] = {name: {"tokens": 0, "turns": [], "losses": []} for name in sides}
    for turn in range(rounds):
        for number, (name, settings) in enumerate(sides.items()):
            resolved = configured("garrulus-a40", base, data, steps, *settings, *overrides)
            done = make(resolved, folder / f"{number}-{turn}")
            rates = [line["tokens_per_second"] for line in done.metrics if "loss" in line][skip:]
            side = found[name]
            side["turns"].append(statistics.median(rates))
            side |= {"tokens": done.record["result"]["tokens"], "losses": done.losses}
    for side in found.values():
        side["tokens_per_second"] = statistics.median(side["turns"])
    return found
