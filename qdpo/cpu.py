"""The processor: how many threads compute, and whether bfloat16 is fast."""

from __future__ import annotations

import contextlib
import math
import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CPUINFO = Path("/proc/cpuinfo")
LOADAVG = Path("/proc/loadavg")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")

THREADS_VARIABLE = "OMP_NUM_THREADS"

BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""What Linux calls instructions for products in bfloat16: of x86, of its tiles, and of ARM."""

CLEARLY = 1.3
"""How many times faster bfloat16 must be to be taken: a choice that noise cannot turn."""

ENOUGH_BYTES = 200_000_000
"""A smaller model computes in float32: there is little to gain, and every machine gets the same bits."""

WIDTH_TRIED, TOKENS_TRIED = 2048, 256
SECONDS_OF_TRIES = 0.3
"""After which no further try begins."""

LOOKS = 5
SECONDS_BETWEEN_LOOKS = 0.02


# ------------------------------------------------------------------------------------------------------------- threads


@dataclass(frozen=True)
class Threads:
    """How many threads compute.

    Attributes:
        count: for torch; None leaves torch's own choice.
        reason: to be said; None where there is nothing to say.
    """

    count: int | None
    reason: str | None = None


def choose_threads(default: int, began_with: int | None = None) -> Threads:
    """As many as torch would take, but not more than a control group allows, and fewer where other programs compute.

    More threads than free cores wait for one another: ten times slower is usual.

    Args:
        default: what torch would take.
        began_with: threads of the run that goes on, whose last digits should stay the same.
    """
    busy, cores = others_computing(), os.cpu_count() or 1
    wanted = os.environ.get(THREADS_VARIABLE, "")
    told = f"{busy} other threads compute on the {cores} cores of this machine"
    if wanted.isdigit():
        crowded = busy and busy + int(wanted) > cores
        return Threads(None, f"{wanted} threads, as {THREADS_VARIABLE} says; {told}" if crowded else None)
    quota = cpu_quota()
    allowed = default if quota is None else max(1, min(default, int(quota)))
    if began_with is not None and began_with <= allowed:
        return Threads(began_with, f"{began_with} threads, as the run began; {told}" if began_with != allowed else None)
    free = max(1, min(allowed, cores - busy))
    if free < allowed:
        way_out = f"{THREADS_VARIABLE}={allowed} takes all; the number may change the last digits of the result"
        return Threads(free, f"{free} of {allowed} threads: {told}; {way_out}")
    if allowed < default:
        return Threads(allowed, f"{allowed} of {default} threads: the control group's limit is {quota:g} cores")
    return Threads(None)


def cores() -> int:
    """Cores that this process may use: by its affinity and the limit of its control group."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def others_computing() -> int:
    """Threads of other programs that want a core right now, the fewest of a few looks; 0 where it is not known."""
    seen = []
    for look in range(LOOKS):
        if look:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        try:
            running = int(LOADAVG.read_text().split()[3].split("/")[0])
        except (OSError, ValueError, IndexError):
            return 0
        seen.append(max(running - 1, 0))  # without the one that reads this
    return min(seen)


def cpu_quota() -> float | None:
    """Cores that the control groups of this process allow; None without a limit."""
    limits = []
    for folder in own_cgroups():
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            limits.append(int(quota) / int(period))  # `max` is no number
    with contextlib.suppress(OSError, ValueError):
        old = CGROUPS / "cpu"
        allowed = int((old / "cpu.cfs_quota_us").read_text())
        if allowed > 0:
            limits.append(allowed / int((old / "cpu.cfs_period_us").read_text()))
    return min(limits, default=None)


def own_cgroups() -> list[Path]:
    """The folder of this process' control group and those above it; each may have a limit."""
    own = CGROUPS
    with contextlib.suppress(OSError):
        for line in OWN_CGROUP.read_text().splitlines():
            if line.startswith("0::"):
                own = CGROUPS / line[3:].lstrip("/")
    return [own, *(parent for parent in own.parents if parent.is_relative_to(CGROUPS))]


# ------------------------------------------------------------------------------------------------------------ bfloat16


def flags() -> set[str]:
    """The processor's instructions by Linux's names; empty elsewhere."""
    with contextlib.suppress(OSError):
        for line in CPUINFO.read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.split())
    return set()


def has_bf16() -> bool:
    """Whether the processor has instructions for products in bfloat16."""
    return not flags().isdisjoint(BF16_FLAGS)


def choose_bf16(weight_bytes: int | None) -> tuple[bool, str]:
    """Whether a model computes in bfloat16 on this processor, and why.

    Args:
        weight_bytes: of the model's files; None for a large one.
    """
    if weight_bytes is not None and weight_bytes < ENOUGH_BYTES:
        return False, f"CPU, and {weight_bytes / 1e6:,.0f} MB of weights are a small model"
    if not has_bf16():
        return False, "CPU without instructions for bfloat16, which would be emulated"
    slow, fast = layer_flops()
    ratio = fast / slow
    measured = f"measured in a 4-bit layer: {fast / 1e9:,.0f} GFLOP/s, float32 {slow / 1e9:,.0f}"
    return ratio >= CLEARLY, f"CPU, {measured} ({ratio:.1f} times)"


@cache
def layer_flops() -> tuple[float, float]:
    """Operations a second of a 4-bit layer's forward and backward products in float32 and in bfloat16.

    Measured once in a process, for about half a second: the faster of a few tries each, in turns.
    """
    import torch

    best = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    with torch.no_grad():
        for dtype in best:  # gets the libraries ready
            _layer_seconds(dtype, tokens=8)
        began = time.perf_counter()
        while time.perf_counter() - began < SECONDS_OF_TRIES:
            for dtype in best:
                best[dtype] = min(best[dtype], _layer_seconds(dtype, tokens=TOKENS_TRIED))
    work = 4.0 * TOKENS_TRIED * WIDTH_TRIED**2
    return work / best[torch.float32], work / best[torch.bfloat16]


@cache
def decoding_seconds(*, half: bool) -> float:
    """Seconds per weight of a 4-bit layer that is run over one token, as when an answer is written."""
    import torch

    dtype = torch.bfloat16 if half else torch.float32
    with torch.no_grad():
        return min(_layer_seconds(dtype, tokens=1) for _ in range(3)) / 2 / WIDTH_TRIED**2


def _layer_seconds(dtype: torch.dtype, tokens: int) -> float:
    """Seconds of a square 4-bit layer's forward product and of the gradient of its input."""
    import torch
    from bitsandbytes.functional import QuantState, dequantize_4bit, get_4bit_type

    size, block = WIDTH_TRIED**2, 64
    packed = torch.zeros(size // 2, 1, dtype=torch.uint8)  # which values the bits stand for does not matter
    state = QuantState(
        absmax=torch.ones(size // block),
        shape=torch.Size((WIDTH_TRIED, WIDTH_TRIED)),
        code=get_4bit_type("nf4", device="cpu"),
        blocksize=block,
        quant_type="nf4",
        dtype=dtype,
    )
    x = torch.ones(tokens, WIDTH_TRIED, dtype=dtype)
    began = time.perf_counter()
    y = x @ dequantize_4bit(packed, state).t()
    _ = y @ dequantize_4bit(packed, state)
    return time.perf_counter() - began
