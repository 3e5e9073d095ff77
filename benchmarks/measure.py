"""Clocks. Memory is measured by `qdpo.planner.meter`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: processor time (a busy machine does not change it) and wall time."""

    cpu: float
    wall: float


def timed(run: Callable[[], object], device: torch.device) -> Timing:
    """The time of one call, everything on the device finished."""
    _finish(device)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    _finish(device)
    return Timing(time.process_time() - cpu, time.perf_counter() - wall)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def interleaved(
    variants: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[Timing]]:
    """Times of every variant, A B C A B C ..., so that a change of the machine's speed meets all of them."""
    times: dict[str, list[Timing]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            times[name].append(timed(run, device))
    return times


def summary(times: list[Timing], clock: str) -> dict[str, Any]:
    """Median seconds by one clock, and all of them."""
    seconds = [getattr(time, clock) for time in times]
    return {"seconds": statistics.median(seconds), "all": seconds}


def ratio(times: list[Timing], baseline: list[Timing], clock: str) -> dict[str, float]:
    """How many times as fast as a baseline measured in the same rounds: median, lowest, highest."""
    ratios = [getattr(b, clock) / getattr(t, clock) for b, t in zip(baseline, times, strict=True)]
    return {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
