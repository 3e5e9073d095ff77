"""The optimizer: torch's AdamW or bitsandbytes', its update, and its state after a resume, in pages where it was."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qdpo.config.schema import TrainSection


def make_optimizer(train: TrainSection, name: str, trained: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """An AdamW over what is trained; weights are decayed, biases and norms are not.

    Args:
        train: rates, moments and decay.
        name: one of `train.optim`'s, not `auto`. The paged ones are paged on CUDA only.
        trained: the parameters, in the model's order.
    """
    settings: dict[str, Any] = {
        "lr": train.learning_rate,
        "betas": (train.adam_beta1, train.adam_beta2),
        "eps": train.adam_epsilon,
    }
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name.startswith("adamw_torch"):
        return torch.optim.AdamW(groups, fused=name == "adamw_torch_fused" or None, **settings)
    from bitsandbytes.optim import AdamW

    paged = name.startswith("paged") and trained[0].is_cuda
    return AdamW(groups, optim_bits=8 if "8bit" in name else 32, is_paged=paged, **settings)


def gradient_norm(trained: Iterable[nn.Parameter]) -> Tensor:
    """The norm of all gradients so far, a scalar on the device; not finite when any of them is not."""
    return nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])


def update(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    trained: Sequence[nn.Parameter],
    norm: Tensor,
    limit: float,
) -> bool:
    """Clip the gradients, let the optimizer use them, and drop them.

    Args:
        optimizer: over what is trained.
        scaler: of the loss in float16, which has unscaled the gradients; None elsewhere.
        trained: the parameters.
        norm: of their gradients.
        limit: what it is clipped to; 0 does not clip.

    Returns:
        Whether the scaler left the step out, because gradients overflowed.
    """
    if limit:
        nn.utils.clip_grads_with_norm_(trained, limit, norm)
    skipped = False
    if scaler is None:
        optimizer.step()
    else:
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped = scaler.get_scale() < before
    optimizer.zero_grad()
    return skipped


def load_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Load what an optimizer's `state_dict` gave; what bitsandbytes had in pages is in pages again.

    bitsandbytes' own `load_state_dict` makes ordinary tensors on the card of them, which stay there.

    Args:
        optimizer: a fresh one of the same kind.
        state: its tensors on the CPU.
    """
    if not getattr(optimizer, "is_paged", False):
        optimizer.load_state_dict(state)
        return
    optimizer.load_state_dict(state, move_to_device=False)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if name in ("state1", "state2"):
                with warnings.catch_warnings():
                    # a CPU has no pages, and bitsandbytes says so
                    warnings.simplefilter("ignore")
                    # by its own rule: tensors of 100,000 values and more
                    values[name] = optimizer.get_state_buffer(parameter, dtype=value.dtype)
                values[name].copy_(value)
            elif isinstance(value, torch.Tensor):
                values[name] = value.to(parameter.device)
