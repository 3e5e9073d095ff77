"""An optimizer's state after a resume: in pages where it was in pages."""

from __future__ import annotations

import warnings
from typing import Any

import torch


def load_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Load what an optimizer's `state_dict` gave; what bitsandbytes had in pages is in pages again.

    bitsandbytes' own `load_state_dict` makes ordinary tensors on the card of them, which stay there.

    Args:
        optimizer: a fresh one of the same kind, as accelerate wraps it or bare.
        state: its tensors on the CPU.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if not getattr(inner, "is_paged", False):
        optimizer.load_state_dict(state)
        return
    inner.load_state_dict(state, move_to_device=False)
    for parameter, values in inner.state.items():
        for name, value in values.items():
            if name in ("state1", "state2"):
                with warnings.catch_warnings():
                    # a CPU has no pages, and bitsandbytes says so
                    warnings.simplefilter("ignore")
                    # by its own rule: tensors of 100,000 values and more
                    values[name] = inner.get_state_buffer(parameter, dtype=value.dtype)
                values[name].copy_(value)
            elif isinstance(value, torch.Tensor):
                values[name] = value.to(parameter.device)
