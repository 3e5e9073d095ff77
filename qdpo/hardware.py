"""What this machine can do, and the choices that follow; every choice comes with its reason."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from qdpo import console, cpu

if TYPE_CHECKING:
    import torch

GIB = 1 << 30

SECONDS_BETWEEN_LOOKS = 0.02


@dataclass(frozen=True)
class Device:
    """The device that a run computes on.

    Attributes:
        kind: `cuda` or `cpu`.
        name: what the maker calls it.
        capability: CUDA compute capability (major, minor); None on a CPU.
        memory: bytes of memory, the GPU's own or the machine's.
    """

    kind: str
    name: str
    capability: tuple[int, int] | None
    memory: int

    @property
    def torch(self) -> torch.device:
        """The same device for torch."""
        import torch

        return torch.device("cuda", torch.cuda.current_device()) if self.kind == "cuda" else torch.device("cpu")


def find_device() -> Device:
    """The GPU when there is one, else the CPU."""
    import torch

    if torch.cuda.is_available():
        index = torch.cuda.current_device()
        properties = torch.cuda.get_device_properties(index)
        return Device("cuda", properties.name, (properties.major, properties.minor), properties.total_memory)
    return Device("cpu", cpu_name(), None, machine_memory())


def machine_memory() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpu_name() -> str:
    """The processor's model name."""
    try:
        with open("/proc/cpuinfo") as stream:
            for line in stream:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def use_threads(began_with: int | None = None) -> None:
    """Let torch compute with as many threads as suits this machine now, and say so where that is not its own choice.

    Args:
        began_with: threads of a run that goes on.
    """
    import torch

    threads = cpu.choose_threads(torch.get_num_threads(), began_with)
    if threads.count is not None:
        torch.set_num_threads(threads.count)
    if threads.reason is not None:
        console.note(threads.reason)


def choose_dtype(wanted: str, device: Device, weight_bytes: int | None = None) -> tuple[torch.dtype, str]:
    """The compute type and why.

    The compute capability decides, not `torch.cuda.is_bf16_supported()`, which is true by emulation on a T4. On a CPU
    a measurement does.

    Args:
        wanted: `auto`, or the name of a torch floating-point type that the configuration asks for.
        device: where the model will run.
        weight_bytes: of the model's files; None for a large one.
    """
    import torch

    if wanted != "auto":
        return getattr(torch, wanted), "set by model.dtype"
    if device.kind == "cpu":
        fast, why = cpu.choose_bf16(weight_bytes)
        return torch.bfloat16 if fast else torch.float32, why
    assert device.capability is not None
    version = f"{device.capability[0]}.{device.capability[1]}"
    if device.capability >= (8, 0):
        return torch.bfloat16, f"compute capability {version} has bfloat16 (8.0 and up)"
    return torch.float16, f"compute capability {version} has no bfloat16 (8.0 and up), using float16 with fp32 adapters"


def peak_memory(device: Device) -> int:
    """Peak bytes so far: allocated on the GPU, or this process' own memory on a CPU, without mapped files."""
    if device.kind == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return own_peak()


class _OwnMemory(threading.Thread):
    """Looks now and then at the anonymous pages of this process, of which Linux keeps no peak.

    Pages of mapped files are not counted: they are the page cache's, which gives them up when memory is short.
    """

    def __init__(self) -> None:
        super().__init__(name="memory", daemon=True)
        self.peak = 0

    def look(self) -> int | None:
        """Look now; None where the system does not tell."""
        if (now := _linux_bytes("/proc/self/status", "RssAnon:")) is not None:
            self.peak = max(self.peak, now)
        return now

    def run(self) -> None:
        while self.look() is not None:
            time.sleep(SECONDS_BETWEEN_LOOKS)


@cache
def _own_memory() -> _OwnMemory:
    watch = _OwnMemory()
    watch.start()
    return watch


def begin_own_peak() -> None:
    """From now on `own_peak` counts."""
    _own_memory().peak = 0


def own_peak() -> int:
    """Peak bytes of this process' anonymous pages since `begin_own_peak`, by 50 looks a second; where the system does
    not tell them apart, of all its resident pages ever."""
    watch = _own_memory()
    return resident_peak() if watch.look() is None else watch.peak


def resident_peak() -> int:
    """Peak resident bytes of this process.

    Linux counts in `ru_maxrss` what the process that started this one had in memory (a notebook's gigabytes, say);
    `VmHWM` begins anew.
    """
    if (peak := _linux_bytes("/proc/self/status", "VmHWM:")) is not None:
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def machine_available() -> int | None:
    """Bytes of the machine's memory that programs may still take by the kernel's estimate; None where it is unknown."""
    return _linux_bytes("/proc/meminfo", "MemAvailable:")


def free_swap() -> int:
    """Bytes of swap that are free; 0 where it is unknown."""
    return _linux_bytes("/proc/meminfo", "SwapFree:") or 0


def _linux_bytes(table: str, name: str) -> int | None:
    """A value of one of Linux's tables, which are in kB; None where there is none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(table).read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return None


def available_memory() -> int:
    """The same within the limit of a control group; all memory of the machine where it is unknown."""
    available = machine_available()
    if available is None:
        available = machine_memory()
    for limit, used in _memory_limits():
        available = min(available, limit - used)
    return max(available, 0)


def memory_limit() -> int | None:
    """Bytes that a control group allows; None without a limit."""
    return min((limit for limit, _ in _memory_limits()), default=None)


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Limits of control groups, and what is used of each, in bytes."""
    files = [(folder / "memory.max", folder / "memory.current") for folder in cpu.own_cgroups()]
    old = cpu.CGROUPS / "memory"
    files.append((old / "memory.limit_in_bytes", old / "memory.usage_in_bytes"))
    for limit, used in files:
        # `max` is no number
        with contextlib.suppress(OSError, ValueError):
            yield int(limit.read_text()), int(used.read_text())


def mixed_precision(device: Device, dtype: torch.dtype) -> Callable[[], AbstractContextManager[object]]:
    """The context of a forward pass: autocast in half precision, else none.

    On a CPU that is bfloat16; float16 has no loss scaling there.
    """
    import torch

    if dtype == torch.bfloat16 or (dtype == torch.float16 and device.kind == "cuda"):
        return partial(torch.autocast, device.kind, dtype)
    return contextlib.nullcontext


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the GPU's or the machine's memory ran out.

    Python's own `MemoryError` and the CPU allocator's failure count too: with a limit on the process (a container, a
    batch system) they are what a smaller pass helps against.
    """
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, Exception) and (
        should_reduce_batch_size(error) or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)
    )
