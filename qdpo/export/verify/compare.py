"""Comparing tensors that were read back with the merged weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from qdpo.export.verify.checks import Check, from_problems

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
    "W4A16": 0.25,
}


@dataclass
class Comparison:
    """Errors of the tensors compared so far."""

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


def compare_all(
    names: Iterable[str],
    stored: Callable[[str], tuple[torch.Tensor, str]],
    expected: Callable[[str], torch.Tensor],
) -> Comparison:
    """Compare tensors one by one; `stored` gives a tensor and its kind."""
    comparison = Comparison()
    for name in names:
        tensor, kind = stored(name)
        comparison.add(name, tensor, expected(name), kind)
    return comparison
