"""Comparing tensors that were read back with the merged weights.

AWQ has moved scales between tensors: it multiplies the columns of a layer by factors, and divides what feeds them by
the same: the gains of the norm before it, or the rows of the layer before it. The model stays what it was, its tensors
do not. There the factors are found again, from the norm's gains (exactly) or by fitting one number to each row, and the
merged weights are multiplied by them before they are compared. A swapped, transposed or shifted tensor is no multiple
of anything and stays wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from qdpo.export.gguf.families import FAMILIES
from qdpo.export.verify.checks import Check, from_problems
from qdpo.export.verify.projection import Projection
from qdpo.model.merged import MergedModel

# Largest relative RMS error of a tensor, by type: about twice what the type costs on Gaussian weights, and far below
# what a swapped, transposed or shifted tensor gives (about 1.4).
ERROR_LIMITS = {
    "float32": 0.0,
    "float16": 1e-3,
    "bfloat16": 4e-3,
    "F32": 1e-6,
    "F16": 1e-3,
    "BF16": 4e-3,
    "Q8_0": 0.015,
    "Q6_K": 0.04,
    "Q5_K": 0.08,
    "Q5_1": 0.1,
    "Q5_0": 0.12,
    "Q4_K": 0.16,
    "Q4_1": 0.18,
    "Q4_0": 0.22,
    "IQ4_NL": 0.17,
    "IQ4_XS": 0.17,
    "Q3_K": 0.32,
    "Q2_K": 0.6,
    "W4A16": 0.25,
}

FIRST, ATTENTION, MLP = "input_layernorm", "self_attn", "mlp"
KIND, UNTOUCHED = "W4A16", "bfloat16"
NEARLY_NOTHING = 1e-6


@dataclass
class Comparison:
    """Errors of the tensors compared so far with the merged weights."""

    problems: list[str] = field(default_factory=list)
    count: int = 0
    worst: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, stored: torch.Tensor, expected: torch.Tensor, kind: str) -> None:
        """Compare a tensor with what it should be, both float32; `kind` names its type in `ERROR_LIMITS`."""
        self.count += 1
        if stored.shape != expected.shape:
            self.problems.append(f"{name} is {tuple(stored.shape)}, expected {tuple(expected.shape)}")
            return
        scale = float(expected.norm())
        error = float((stored - expected).norm()) / scale if scale else float(stored.norm())
        self.worst[kind] = max(self.worst.get(kind, 0.0), error)
        if not error <= ERROR_LIMITS[kind]:  # NaN fails
            self.problems.append(
                f"{name} ({kind}) differs by {error:.3g} of its size, the limit is {ERROR_LIMITS[kind]}"
            )

    def check(self, missing: Iterable[str], unexpected: Iterable[str]) -> Check:
        """The result over all tensors."""
        problems = [f"{name} is missing" for name in sorted(missing)]
        problems += [f"{name} does not belong there" for name in sorted(unexpected)]
        worst = ", ".join(f"{kind} {error:.2g}" for kind, error in sorted(self.worst.items()))
        good = f"{self.count} tensors equal the merged weights (largest relative error: {worst})"
        return from_problems("read-back", problems + self.problems, good)


@dataclass(frozen=True)
class Expected:
    """What a stored tensor is compared with.

    Attributes:
        values: what it should be but for the type's own rounding, float32.
        change: what the adapter has changed of the base's tensor, float32; None where it has not.
        rounded: gives the tensor of the same export of the bare base, float32; None where there is none.
    """

    values: torch.Tensor
    change: torch.Tensor | None = None
    rounded: Callable[[], torch.Tensor] | None = None


def compare_all(
    names: Iterable[str],
    stored: Callable[[str], tuple[torch.Tensor, str]],
    expected: Callable[[str], Expected],
    projection: Projection,
) -> Comparison:
    """Compare tensors one by one.

    Args:
        names: of the tensors.
        stored: gives one of them, float32, and its kind; it may be changed.
        expected: gives what it should be.
        projection: takes in what became of the adapter's change.
    """
    comparison = Comparison()
    for name in names:
        tensor, kind = stored(name)
        wanted = expected(name)
        comparison.add(name, tensor, wanted.values, kind)
        if wanted.change is None or wanted.rounded is None or tensor.shape != wanted.change.shape:
            continue
        projection.add(name, tensor.sub_(wanted.rounded()), wanted.change, wanted.values)
    return comparison


def compare_smoothed(
    model: MergedModel,
    names: Iterable[str],
    stored: Callable[[str], torch.Tensor],
    expected: Callable[[str], Expected],
    projection: Projection,
) -> Comparison:
    """Compare stored tensors with the merged ones, up to the factors that AWQ moved.

    Args:
        model: the merged model.
        names: tensors that the export has, layers by the name of their weight.
        stored: gives one, dequantised, float32.
        expected: gives what it should be.
        projection: takes in what became of the adapter's change, the factors taken out.
    """
    comparison, smoothing, twin = Comparison(), Smoothing(model, names), Smoothing(model, names)
    for name in smoothing.order:
        found, wanted = stored(name), expected(name)
        values = wanted.values
        if found.shape != values.shape:
            comparison.add(name, found, values, KIND)
            continue
        factor = smoothing.factor(name, found, values)
        if smoothing.is_norm(name):
            if not (torch.isfinite(factor) & (factor > 0)).all():
                comparison.problems.append(f"{name} is not the merged norm with its gains scaled")
            comparison.count += 1
        elif smoothing.is_moved(name):
            comparison.add(name, found, values * factor, KIND)
        else:
            comparison.add(name, found, values.to(torch.bfloat16).float(), UNTOUCHED)
        takes_part = smoothing.is_norm(name) or smoothing.is_moved(name) or wanted.change is not None
        if wanted.rounded is None or not takes_part:
            continue
        # The bare base's export has factors of its own, which later tensors need even where this one did not change.
        other = wanted.rounded()
        own = twin.factor(name, other, values if wanted.change is None else values - wanted.change)
        if wanted.change is not None:
            projection.add(name, found.div_(factor).sub_(other.div_(own)), wanted.change, values)
    return comparison


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
            columns = _columns(name, expected.shape[1], self._feeders, self._factors)
            self._factors[name] = _rows(name, found, expected * columns, self._model)
            return columns * self._factors[name].unsqueeze(1)
        if self.is_moved(name):
            return self._factors.get(name.removesuffix(".bias") + ".weight", torch.ones(()))
        return torch.ones(())


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


def _columns(name: str, width: int, feeders: dict[str, str], factors: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the columns of a layer were multiplied by: the inverse of what was done to the outputs they take."""
    factor = factors.get(feeders[name])
    if factor is None or len(factor) < width:  # grouped value heads feed several columns each: AWQ leaves them alone
        return torch.ones(width)
    return 1 / factor[-width:]


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
