"""What `auto` chooses under a cap, what it takes and gains, and that it changes nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from gpu.memory import capped
from gpu.runs import LEAST_MEMORY, Done, configured, run
from gpu.timed import WARM_UP, seconds_of, timed_steps

from qdpo.hardware import GIB

SPREAD = 5
"""How many times the difference of two identical runs a third one may differ: 0 of 0 is every bit."""


def auto_under_caps(
    base: Path,
    data: tuple[Path, Path],
    folder: Path,
    device: torch.device,
    sizes: Sequence[float],
    steps: int,
    *overrides: str,
    skip: int = WARM_UP,
) -> dict[str, Any]:
    """The same run with all layers computed twice, once more so, and as `auto` chooses it in some sizes of memory.

    The optimizer is the same in all of them: they differ in their rounding.

    Args:
        base: the model's folder.
        data: training and held-out pairs.
        folder: for the runs.
        device: where they run.
        sizes: GiB of the cards that are imitated, ascending; the first is that of the runs without `auto`.
        steps: optimizer steps.
        overrides: as `--set` takes them.
        skip: steps whose seconds are left out.

    Returns:
        Of each run its memory, its choices, its seconds and how far its losses and adapter are from the first run's.
        `again` repeats the first: what it differs by, the kernels' own order of summing makes.
    """

    def made(name: str, size: float, *more: str) -> tuple[Done, dict[str, Any]]:
        settings = ("train.optim=adamw_torch_fused", *more, *overrides)
        resolved = configured("garrulus-a40", base, data, steps, *settings)
        with capped(device, size * GIB) as limit:
            done = run(resolved, folder / name, device)
        found = {
            **done.as_dict(),
            "limit_bytes": limit,
            "halved": done.record.get("memory", {}).get("halved", []),
            "seconds_of_steps": seconds_of(timed_steps(done, resolved.config), skip),
        }
        return done, found

    first, least = made("least", sizes[0], *LEAST_MEMORY)
    others = {"again": made("again", sizes[0], *LEAST_MEMORY)}
    others |= {f"auto in {size:g} GiB": made(f"auto-{size:g}", size) for size in sizes}
    found = {name: {**values, **difference(first, done)} for name, (done, values) in others.items()}
    return {"least": least, **found}


def difference(one: Done, other: Done) -> dict[str, float]:
    """How far two runs of the same steps are from each other: 0 where every bit is the same."""
    gaps = (abs(a / b - 1) for a, b in zip(other.losses, one.losses, strict=True))
    return {"loss_difference": max(gaps), "adapter_difference": adapters_apart(one.adapter, other.adapter)}


def adapters_apart(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """Relative difference (L2) of two adapters' weights."""
    assert one.keys() == other.keys()
    gap = sum(float((other[name] - weight).double().square().sum()) for name, weight in one.items())
    size = sum(float(weight.double().square().sum()) for weight in one.values())
    return (gap / size) ** 0.5
