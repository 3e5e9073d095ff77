"""Decoding token by token, which a frozen 4-bit layer is told of: its weights are then read as they are stored.

A dequantized weight is written and read again, 16 bits each, where 4 are stored: for the few rows of a token that is
all the time it takes. bitsandbytes has a product that reads the 4 bits (`gemm_4bit`) and takes it by rows, shape, type
and card, on every card for up to four rows (`_gemm_4bit_use_custom_cuda` in its backends/cuda/ops.py). It rounds
otherwise, so nothing that is compared with a training pass may take it. Neither the number of rows nor the mode of
autograd would tell: a pass of the reference may have few, and gradients are off inside of every fused function.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

_decoding = False


def is_decoding() -> bool:
    """Whether the code that asks runs within `decoding`."""
    return _decoding


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """Passes of a model that writes, without gradients, compared with no other pass."""
    global _decoding
    before, _decoding = _decoding, True
    try:
        with torch.no_grad():
            yield
    finally:
        _decoding = before
