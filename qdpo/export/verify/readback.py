"""Comparing tensors that were read back with the merged weights.

AWQ has moved scales between tensors (`qdpo.export.awq.smoothing`). There the factors are found again and the merged
weights are multiplied by them before they are compared. A swapped, transposed or shifted tensor is no multiple of
anything and stays wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from qdpo.export.awq.smoothing import Smoothing
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

KIND, UNTOUCHED = "W4A16", "bfloat16"


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
