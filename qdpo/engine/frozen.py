"""A frozen linear layer as the fused functions see it: dense, or in 4 bits and dequantized where it is needed.

Where a run is trained on a grid (`engine.on_grid`), the weight is base and adapter together, rounded.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qdpo.engine.decoding import is_decoding
from qdpo.engine.kept import kept_weight
from qdpo.engine.on_grid import OnGrid, on_grid_of


class Frozen:
    """The weight of a frozen linear layer.

    Attributes:
        module: nn.Linear, or bitsandbytes' Linear4bit.
    """

    __slots__ = ("module",)

    def __init__(self, module: Any) -> None:
        self.module = module

    @property
    def on_grid(self) -> OnGrid | None:
        """What rounds base and adapter to a grid; None where the weight is the base's, and the adapter comes beside."""
        return on_grid_of(self.module)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """(out, in) in a type; a 4-bit weight is dequantized anew at every call, unless its values are kept."""
        on_grid = self.on_grid
        return self._base().to(dtype) if on_grid is None else on_grid.weight(self._base, dtype)

    def _base(self) -> Tensor:
        """The base's weight, in the type that it was loaded in."""
        kept = kept_weight(self.module)
        if kept is not None:
            return kept
        state = getattr(self.module.weight, "quant_state", None)
        if state is None:
            own: Tensor = self.module.weight
            return own
        from bitsandbytes.functional import dequantize_4bit

        values: Tensor = dequantize_4bit(self.module.weight, state)
        return values

    def __call__(self, x: Tensor) -> Tensor:
        """(N, in) to (N, out)."""
        bias = self.module.bias.to(x.dtype) if self.module.bias is not None else None
        state = getattr(self.module.weight, "quant_state", None)
        if state is not None and is_decoding() and self.on_grid is None:
            from bitsandbytes import matmul_4bit

            return matmul_4bit(x, self.module.weight, state, bias=bias)
        return F.linear(x, self.weight(x.dtype), bias)


def is_frozen_linear(module: Any) -> bool:
    """Whether a module is a linear layer of a kind that `Frozen` knows and that is not trained."""
    kinds: tuple[type, ...] = (torch.nn.Linear,)
    try:
        from bitsandbytes.nn import Linear4bit

        kinds += (Linear4bit,)
    except ImportError:
        pass
    return type(module) in kinds and not any(parameter.requires_grad for parameter in module.parameters())
