"""How memory is taken and given back, so that passes of ever new sizes leave no gaps.

Of a GPU torch takes it in segments that grow. It reads its setting when CUDA is first used. A user's own stays;
PYTORCH_ALLOC_CONF=expandable_segments:False is the way out for a driver that cannot map memory (some virtual GPUs).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Environment variables that torch reads, in its order; the first one that is set holds (c10/cuda/CUDAAllocatorConfig.h
of torch 2.10 to 2.13)."""

EXPANDABLE = "expandable_segments:True"

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
RETURNED_BYTES = 8 << 20
"""Blocks of this size and more are returned to the system when they are freed."""


def expand_segments() -> None:
    """Ask for segments that grow, unless the user has said what to do or CUDA is in use already."""
    torch = sys.modules.get("torch")
    if allocator() is None and not (torch is not None and torch.cuda.is_initialized()):
        os.environ[NAMES[-1]] = EXPANDABLE


def allocator() -> str | None:
    """The setting that torch was or will be given, for run.json and `qdpo doctor`; None for its own defaults."""
    return next((os.environ[name] for name in NAMES if os.environ.get(name)), None)


def return_freed_blocks() -> None:
    """Let glibc return large blocks to the system when they are freed, instead of keeping them in its heap.

    By default it stops doing so for blocks of up to 32 MiB once such a block was freed, and the heap between those that
    are still in use is lost to other programs. Elsewhere than with glibc nothing happens; a user's own setting stays.
    """
    if any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, RETURNED_BYTES)
        mallopt(M_TRIM_THRESHOLD, RETURNED_BYTES)
