"""Which AdamW trains.

bitsandbytes waits for the device after each tensor of a step (`Optimizer8bit.step` calls `torch.cuda.synchronize` for
every parameter, 448 times for an adapter on seven projections of 32 layers); torch's own launches one kernel for many
tensors and waits for nothing. So bitsandbytes' is for the runs whose state has no room on the card.
"""

from __future__ import annotations

from dataclasses import dataclass

from qdpo.hardware import GIB

AUTO = "auto"
FUSED, FOREACH, PAGED = "adamw_torch_fused", "adamw_torch", "paged_adamw_32bit"

STATE = 8
"""Bytes of both moments of a trained weight, in fp32."""

SMALL_STATE = 2 + 2 * 4 / 256
"""The same in 8 bits: bitsandbytes gives 256 moments one fp32 scale."""

FOREACH_TEMPORARIES = 8
"""Bytes of a weight that torch's unfused AdamW takes for a moment: it works on all weights at once."""


def optimizer_bytes(optim: str, weights: int) -> float:
    """Bytes of both Adam states of trained weights, by transformers' name of the optimizer."""
    return weights * (SMALL_STATE if "8bit" in optim else float(STATE))


def step_temporaries(optim: str, weights: int) -> float:
    """Bytes that a step takes for a moment: bitsandbytes' Adam and torch's fused one work in place."""
    return float(FOREACH_TEMPORARIES * weights) if optim == FOREACH else 0.0


def is_paged(optim: str) -> bool:
    """Whether the optimizer's state may leave the card for the host's memory."""
    return optim.startswith("paged")


@dataclass(frozen=True)
class ChosenOptimizer:
    """The optimizer of a run.

    Attributes:
        name: as transformers knows it.
        reason: why this one.
    """

    name: str
    reason: str


def choose_optimizer(wanted: str, weights: int, free_bytes: float, kind: str) -> ChosenOptimizer:
    """The fastest AdamW whose state fits; all of them compute the same.

    Args:
        wanted: train.optim; another than `auto` is taken as it is, as far as it can be.
        weights: trained weights.
        free_bytes: what a run leaves free at its peak when no optimizer state is on the card.
        kind: of the device, `cuda` or `cpu`.
    """
    if wanted != AUTO:
        return ChosenOptimizer(wanted, "set by train.optim")
    if kind != "cuda":
        return ChosenOptimizer(FOREACH, "paging needs CUDA")
    size = f"both moments are {STATE * weights / GIB:.2f} GiB"
    if STATE * weights <= free_bytes:
        return ChosenOptimizer(FUSED, f"{size} and fit beside the rest")
    return ChosenOptimizer(PAGED, f"{size}, and {max(free_bytes, 0) / GIB:.2f} GiB are free beside the rest")
