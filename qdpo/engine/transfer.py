"""Copies from the host to the device that nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qdpo.engine.device import kind_of


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. To a GPU it goes through pinned memory: from any other, the copy would first wait for
    everything that was launched before it."""
    if kind_of(device) != "cuda" or kind_of(tensor.device) == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def all_to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of one type on a device, sent in one copy; they share its memory there."""
    if kind_of(device) != "cuda":
        return [tensor.to(device) for tensor in tensors]
    together = to_device(torch.cat([tensor.reshape(-1) for tensor in tensors]), device)
    pieces = together.split([tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]
