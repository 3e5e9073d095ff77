"""Which kind of device a pass computes on: the tensors' own, or the card that a plan plays.

A plan runs the engine on tensors without values (`qdpo.planner.play`). They are torch's fake ones, and autograd takes
those for CUDA only where a driver is. So they stand on `CARD`, a device of the CPU that no real tensor is on, and what
depends on the kind of device asks here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

CARD = torch.device("cpu", 0)
"""Where tensors without values are; real ones are on `cpu`, without a number."""


@dataclass(frozen=True)
class Played:
    """What a plan plays.

    Attributes:
        kind: `cuda` or `cpu`.
        capability: CUDA compute capability; None for a CPU.
    """

    kind: str
    capability: tuple[int, int] | None = None


_played: Played | None = None


@contextlib.contextmanager
def playing(card: Played) -> Iterator[None]:
    """Take `CARD` for this card for a while."""
    global _played
    before, _played = _played, card
    try:
        yield
    finally:
        _played = before


def is_played() -> bool:
    """Whether a plan plays the passes of the code that asks."""
    return _played is not None


def kind_of(device: torch.device) -> str:
    """`cuda`, `cpu` or another type of torch's."""
    return _played.kind if _played is not None and device == CARD else device.type


def capability_of(device: torch.device) -> tuple[int, int]:
    """CUDA compute capability of a device whose kind is `cuda`."""
    if _played is not None and device == CARD:
        assert _played.capability is not None
        return _played.capability
    return torch.cuda.get_device_capability(device)
