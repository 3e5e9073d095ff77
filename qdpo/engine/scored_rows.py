"""The last layer's MLP on the rows that predict a completion token, and on no others.

After the last layer only these rows are looked at, and an MLP treats each row by itself, so for the rows of a prompt it
computes what nobody reads: with long prompts that is most of one layer's matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qdpo.engine.recompute import decoder_layers


def last_mlp(model: nn.Module) -> nn.Module | None:
    """The MLP of the last decoder layer, None where there is none by that name."""
    layers = decoder_layers(model)
    return getattr(layers[-1], "mlp", None) if layers else None


def on_scored_rows(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The forward of an MLP as one that leaves out the rows which predict nothing; their output is zero."""

    def pruned(self: Any, x: Tensor) -> Tensor:
        rows = getattr(self, "scored_rows", None)
        if rows is None or x.ndim != 3:
            return forward(self, x)
        y = forward(self, x.index_select(1, rows))
        return y.new_zeros(*x.shape[:2], y.shape[-1]).index_copy(1, rows, y)

    return pruned


def tell_scored_rows(model: nn.Module) -> RemovableHandle:
    """Before each run of the last layer, tell its MLP the pack's rows (or that there is no pack).

    The layer is told, not the model: when checkpointing runs it a second time, it is told again.
    """
    layer = decoder_layers(model)[-1]

    def tell(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        pack = kwargs.get("qdpo_pack")
        layer.mlp.scored_rows = None if pack is None else pack.scored_rows

    return layer.register_forward_pre_hook(tell, with_kwargs=True)
