"""The factors that AWQ has moved between tensors.

It multiplies the columns of a layer by factors, and divides what feeds them by the same: the gains of the norm before
it, or the rows of the layer before it. The model stays what it was, its tensors do not. The factors are found again
from the norm's gains (exactly), or by fitting one number to each row.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from qdpo.export.gguf.families import FAMILIES
from qdpo.model.merged import MergedModel

FIRST, ATTENTION, MLP = "input_layernorm", "self_attn", "mlp"
NEARLY_NOTHING = 1e-6


class Smoothing:
    """The factors that AWQ has moved between the tensors of an export, found as its tensors come by.

    Args:
        model: gives names and shapes.
        names: tensors that the export has.

    Attributes:
        order: the tensors, norms first, then what they feed, then what that feeds.
    """

    def __init__(self, model: MergedModel, names: Iterable[str]) -> None:
        present = set(names)
        self._model = model
        self._feeders = {name: feeder for name in model.names if (feeder := feeder_of(name, model)) in present}
        self._factors: dict[str, torch.Tensor] = {}
        self.order = sorted((n for n in model.names if n in present), key=lambda name: _depth(name, self._feeders))

    def is_norm(self, name: str) -> bool:
        """Whether a tensor holds gains of a norm that feeds layers."""
        return name in self._feeders.values() and len(self._model.shape(name)) == 1

    def is_moved(self, name: str) -> bool:
        """Whether a tensor is of a layer that factors may have been moved in or out of."""
        return name in self._feeders or name.removesuffix(".bias") + ".weight" in self._feeders

    def factor(self, name: str, found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
        """What a tensor was multiplied by; may be broadcast over it. Tensors are asked for in `order`.

        Args:
            name: the tensor's.
            found: as it is stored.
            expected: as it was before.
        """
        if self.is_norm(name):
            plus = _norm_offset(self._model)
            gains = found + plus, expected + plus
            self._factors[name] = torch.where(gains[0] == gains[1], 1.0, gains[0] / gains[1])
            return self._factors[name]
        if name in self._feeders:
            columns = self.columns(name)
            self._factors[name] = _rows(name, found, expected * columns, self._model)
            return columns * self._factors[name].unsqueeze(1)
        if self.is_moved(name):
            return self._factors.get(name.removesuffix(".bias") + ".weight", torch.ones(()))
        return torch.ones(())

    def columns(self, name: str) -> torch.Tensor:
        """What the columns of a layer were multiplied by, once the factor of what feeds it was asked for: [columns].

        It is the inverse of what was done to the outputs that they take.
        """
        width = self._model.shape(name)[1]
        factor = self._factors.get(self._feeders.get(name, ""))
        if (
            factor is None or len(factor) < width
        ):  # grouped value heads feed several columns each: AWQ leaves them alone
            return torch.ones(width)
        return 1 / factor[-width:]


def feeder_of(name: str, model: MergedModel) -> str | None:
    """The tensor whose output a layer's columns take: a norm's gains or another layer's weight."""
    block, _, rest = name.removesuffix(".weight").rpartition(f".{ATTENTION}.")
    room = ATTENTION if block else MLP
    if not block:
        block, _, rest = name.removesuffix(".weight").rpartition(f".{MLP}.")
    if not block or not name.endswith(".weight"):
        return None
    between = f"{block}.pre_feedforward_layernorm.weight"
    before_mlp = between if between in model.names else f"{block}.post_attention_layernorm.weight"
    fused = {ATTENTION: "qkv_proj", MLP: "gate_up_proj"}[room]
    alone = {ATTENTION: "v_proj", MLP: "up_proj"}[room]
    earlier = fused if f"{block}.{room}.{fused}.weight" in model.names else alone
    return {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj"), f"{block}.{FIRST}.weight"),
        **dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj"), before_mlp),
        **dict.fromkeys(("o_proj", "down_proj"), f"{block}.{room}.{earlier}.weight"),
    }.get(rest)


def _depth(name: str, feeders: dict[str, str]) -> tuple[int, bool]:
    """Norms first, then what they feed, then what that feeds; a bias after its weight, whose factors it shares."""
    weight = name.removesuffix(".bias") + ".weight" if name.endswith(".bias") else name
    depth = 0
    while weight in feeders:
        weight, depth = feeders[weight], depth + 1
    return depth, name.endswith(".bias")


def _norm_offset(model: MergedModel) -> float:
    """What a norm adds to its stored gains: Gemma multiplies by 1 + w."""
    family = FAMILIES.get((model.config.get("architectures") or [""])[0])
    return 1.0 if family is not None and family.norm_plus_one else 0.0


def _rows(name: str, found: torch.Tensor, expected: torch.Tensor, model: MergedModel) -> torch.Tensor:
    """What the rows of a layer were multiplied by, fitted, where AWQ may have scaled them; 1 elsewhere."""
    factors = torch.ones(found.shape[0])
    taker = {"v_proj": "o_proj", "qkv_proj": "o_proj", "up_proj": "down_proj", "gate_up_proj": "down_proj"}
    room, _, leaf = name.removesuffix(".weight").rpartition(".")
    if leaf not in taker:
        return factors
    width = model.shape(f"{room}.{taker[leaf]}.weight")[1]
    if {"v_proj": width, "qkv_proj": 3 * width}.get(leaf, found.shape[0]) != found.shape[0]:
        return factors
    size = expected.square().sum(1)
    fitted = (found * expected).sum(1) / size.clamp(min=1e-30)
    fitted = torch.where(size > 0, fitted, 1.0).clamp(min=NEARLY_NOTHING)
    factors[-width:] = fitted[-width:]
    return factors
