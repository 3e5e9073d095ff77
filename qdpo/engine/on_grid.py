"""Training on the grid of a GGUF type (`train.grid`): each pass sees base and adapter together as a file holds them.

    y = x P^T + b        P = Q(W), moved by s B A where it passes a weight's threshold (`model.grid_file`)

The gradients of A and B are those of W + s B A, straight through the rounding (Bengio et al., arXiv 1308.3432), as in
the quantization-aware training of NVIDIA NeMo and torchao. With the adapter disabled P is Q(W), which makes the
reference the same rounding of the bare base. The grids are found once, for the base: what DPO changes, a thousandth of
the weights' size, moves no scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qdpo.errors import UnavailableError
from qdpo.model.grid_file import Grids, placed
from qdpo.model.grids import Grid
from qdpo.model.lora import lora_layers

ON_GRID = "qdpo_on_grid"
"""The attribute of a frozen linear layer that holds its `OnGrid`."""


class OnGrid:
    """A linear layer's base and adapter on their grid.

    On a CPU the last weight is kept, until the adapter changes: a step rounds once, and an answer is written without
    rounding. On a GPU it is made anew, as a 4-bit weight is dequantized anew.

    Args:
        name: of the weight.
        grid: on the layer's device.
        layer: PEFT's, which says which adapter is active.
    """

    def __init__(self, name: str, grid: Grid, layer: Any) -> None:
        self._name, self._kind, self._stored, self._layer = name, grid.kind, grid.stored(), layer
        self._last: tuple[torch.dtype, tuple[Tensor, ...], Tensor] | None = None

    def weight(self, base: Callable[[], Tensor], dtype: torch.dtype) -> Tensor:
        """P, or Q(W) where adapters are disabled: [out, in] in a type.

        Args:
            base: gives W.
            dtype: of the result.
        """
        parts = self._adapter()
        if self._last is not None and self._last[0] == dtype and _equal(self._last[1], parts):
            return self._last[2]
        with torch.no_grad():
            adapter = (*parts, float(self._layer.scaling[self._active()])) if parts else None
            weight = placed(self._name, Grid.of_stored(self._kind, **self._stored), base(), adapter, dtype)
            if weight.device.type == "cpu":
                self._last = (dtype, tuple(part.clone() for part in parts), weight)
        return weight

    def _active(self) -> str:
        (name,) = self._layer.active_adapters
        return str(name)

    def _adapter(self) -> tuple[()] | tuple[Tensor, Tensor]:
        """A and B of the active adapter, nothing where adapters are disabled."""
        if self._layer.disable_adapters:
            return ()
        name = self._active()
        return self._layer.lora_A[name].weight.detach(), self._layer.lora_B[name].weight.detach()


def _equal(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return len(one) == len(other) and all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def on_grid_of(module: nn.Module) -> OnGrid | None:
    """What rounds a frozen linear layer together with its adapter; None for a layer that is not on a grid."""
    return module.__dict__.get(ON_GRID)


def put_on_grid(policy: Any, grids: Grids) -> int:
    """Let every pass of a model see its weights on their grids.

    Layers with an adapter are rounded with it, whenever it has changed; embeddings and head are rounded here, once.

    Args:
        policy: a PeftModel whose adapted linear layers are fused (`engine.fuse`).
        grids: of the model's matrices.

    Returns:
        How many matrices stand on grids.

    Raises:
        UnavailableError: a matrix would be seen without its grid.
    """
    model = policy.get_base_model()
    layers = {f"{name}.weight": layer for name, layer in lora_layers(model).items()}
    parameters = dict(model.named_parameters())
    for name in grids.types:
        grid = grids.of(name)
        assert grid is not None
        if (layer := layers.get(name)) is not None:
            if "forward" not in layer.__dict__:
                raise UnavailableError(f"train.grid: {name} cannot be rounded with its adapter", "leave train.grid out")
            base = layer.get_base_layer()
            device = next(layer.parameters()).device
            base.__dict__[ON_GRID] = OnGrid(name, grid.to(device), layer)
            base.__dict__["forward"] = _refuse
        elif (parameter := parameters.get(name)) is not None and not hasattr(parameter, "quant_state"):
            parameter.data.copy_(placed(name, grid.to(parameter.device), parameter.detach(), None, parameter.dtype))
        else:
            raise UnavailableError(
                f"train.grid: {name} has no adapter", "lora.target_modules must name every linear layer"
            )
    return len(grids.types)


def _refuse(*_: Any, **__: Any) -> Tensor:
    """A layer's own forward, which knows no grid."""
    raise UnavailableError(
        "train.grid: a layer was about to be computed without its grid",
        "set packing.fused_lora: true, and no dropout",
    )
