"""How torch gets memory of a GPU: in segments that grow, so that passes of ever new sizes leave no gaps.

torch reads its setting when CUDA is first used. A user's own stays; PYTORCH_ALLOC_CONF=expandable_segments:False is the
way out for a driver that cannot map memory (some virtual GPUs).
"""

from __future__ import annotations

import os
import sys

NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Environment variables that torch reads, in its order; the first one that is set holds (c10/cuda/CUDAAllocatorConfig.h
of torch 2.10 to 2.13)."""

EXPANDABLE = "expandable_segments:True"


def expand_segments() -> None:
    """Ask for segments that grow, unless the user has said what to do or CUDA is in use already."""
    torch = sys.modules.get("torch")
    if allocator() is None and not (torch is not None and torch.cuda.is_initialized()):
        os.environ[NAMES[-1]] = EXPANDABLE


def allocator() -> str | None:
    """The setting that torch was or will be given, for run.json and `qdpo doctor`; None for its own defaults."""
    return next((os.environ[name] for name in NAMES if os.environ.get(name)), None)
