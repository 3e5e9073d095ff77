"""The card's memory: emptying it, limiting it, and watching the host's while something is loaded."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from qdpo.hardware import GIB


def free_up(device: torch.device) -> None:
    """Give back what nobody uses any more, and start counting peaks anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def context_bytes(device: torch.device) -> int:
    """What is taken on the card beside torch's own allocations: the CUDA context with its libraries, other programs."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


@contextlib.contextmanager
def capped(device: torch.device, size: float) -> Iterator[int]:
    """Let torch's allocator take no more than a card of some size would leave it; yields these bytes.

    The CUDA context, which the allocator does not count, is taken off first.

    Args:
        device: the GPU.
        size: bytes of the card that is imitated; a card that is smaller stays as it is, and a CPU has no cap.
    """
    if device.type != "cuda":
        yield int(size)
        return
    free_up(device)
    total = torch.cuda.mem_get_info(device)[1]
    limit = min(size, total) - context_bytes(device)
    torch.cuda.set_per_process_memory_fraction(limit / total, device)
    try:
        yield int(limit)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        free_up(device)


@dataclass
class Level:
    """Bytes of host memory above the beginning, files' pages not counted.

    Attributes:
        peak: the highest that was seen.
    """

    peak: int = 0


@contextlib.contextmanager
def host_peak(interval: float = 0.01) -> Iterator[Level]:
    """Watch this process's anonymous memory; mapped files (a model's shards) are the kernel's to drop.

    Args:
        interval: seconds between two looks.
    """
    level, begin, done = Level(), _anonymous(), threading.Event()

    def watch() -> None:
        while not done.wait(interval):
            level.peak = max(level.peak, _anonymous() - begin)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield level
    finally:
        done.set()
        thread.join()
        level.peak = max(level.peak, _anonymous() - begin)


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def in_gib(size: float) -> float:
    """For the results: GiB to three places."""
    return round(size / GIB, 3)
