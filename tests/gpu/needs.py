"""What a test on a GPU needs, as skip marks with the reason."""

from __future__ import annotations

import pytest
import torch

from qdpo.hardware import GIB

HALVES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def gib(wanted: float) -> pytest.MarkDecorator:
    """The card has that much memory, give or take what its driver keeps (a 16 GB card reports 14.6 GiB)."""
    if not torch.cuda.is_available():
        return pytest.mark.skip(reason="needs CUDA")
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / GIB
    return pytest.mark.skipif(total < wanted - 0.6, reason=f"needs a card of {wanted:g} GiB, this one has {total:.1f}")


def is_large() -> bool:
    """Whether the card computes and holds enough for the longer measurements."""
    if not torch.cuda.is_available():
        return False
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return properties.major >= 8 and properties.total_memory >= 40 * GIB


def half(dtype: str) -> None:
    """Skip the test where the card computes in another of `HALVES` only."""
    if dtype == "bfloat16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs a card with bfloat16 (compute capability 8.0)")
