"""How much of the adapter's change is in the weights of an artefact.

Rounding moves every weight, and by far more than a DPO adapter does, so a tensor's error says nothing about the
adapter. The same rounding of the bare base does: what the artefact has beside it, Q(B + D) - Q(B), is what became of
the change D. Its projection on D is 1 where the change survived, 0 where none did, -1 where it was turned round:

    <Q(B + D) - Q(B), D> / <D, D>        with <X, Y> = tr(X H Y^T)

H holds the second moments of the layer's inputs, so that <X, X> is what X changes at the layer's output, on average
over tokens. Without moments H is 1, and every weight counts the same.

Layers give outputs of very different size: in a real model one down projection, which few tokens make huge, would be
nine tenths of the sum. So each tensor counts by how much training has changed its output beside what it was,
<D, D> / <B + D, B + D>.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from qdpo.evaluation.statistics import bootstrap_ratios
from qdpo.model.merged import MergedModel
from qdpo.model.moments import Moments

WORST = 5
"""Tensors that are named."""

CHUNK = 1 << 22
"""Weights that are multiplied at a time."""

Inner = Callable[[torch.Tensor, torch.Tensor], float]


@dataclass
class Projection:
    """What became of the adapter's change, tensor by tensor.

    Args:
        moments: of the layers' inputs; None counts every weight the same.

    Attributes:
        products: for each changed tensor <change, trained> and <trained, trained>, both over <merged, merged>.
        left_out: changed tensors that cannot be compared.
    """

    moments: Moments | None = None
    products: dict[str, tuple[float, float]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, name: str, change: torch.Tensor, trained: torch.Tensor, merged: torch.Tensor) -> None:
        """Take in a tensor.

        Args:
            name: the tensor's.
            change: Q(B + D) - Q(B), float32, rows and columns as in torch.
            trained: D, likewise.
            merged: B + D, likewise.
        """
        inner = self._inner(name, trained)
        if inner is None:
            self.left_out.append(name)
            return
        size = _by_rows(inner, merged, merged) or 1.0
        self.products[name] = (_by_rows(inner, change, trained) / size, _by_rows(inner, trained, trained) / size)

    def _inner(self, name: str, tensor: torch.Tensor) -> Inner | None:
        if self.moments is None or tensor.ndim < 2:  # a bias has one input, which is 1
            return _plain
        moment = self.moments.of(name)
        return moment.inner if moment is not None else None

    def record(self) -> dict[str, Any] | None:
        """The figures for verify.json; None where the adapter changes nothing that could be compared.

        Returns:
            value, low, high (for the file, with a 95 % interval over its tensors), tensors (how many), left_out (how
            many changed ones are not among them), metric (`inputs` or `plain`), worst (name and value of those farthest
            from 1).
        """
        found = {name: pair for name, pair in self.products.items() if pair[1] > 0}
        if not found:
            return None
        (estimate,) = bootstrap_ratios(*(np.array([[pair[i]] for pair in found.values()]) for i in (0, 1)))
        each = sorted(((name, a / b) for name, (a, b) in found.items()), key=lambda one: -abs(one[1] - 1))
        return {
            **estimate.as_dict(),
            "tensors": len(found),
            "left_out": len(self.left_out),
            "metric": "plain" if self.moments is None else "inputs",
            "worst": [{"name": name, "value": value} for name, value in each[:WORST]],
        }


def _plain(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x * y).sum(dtype=torch.float64))


def _by_rows(inner: Inner, x: torch.Tensor, y: torch.Tensor) -> float:
    """An inner product in pieces of rows, so that it takes little memory."""
    rows = max(1, CHUNK // max(x[:1].numel(), 1))
    return sum(inner(a, b) for a, b in zip(x.split(rows), y.split(rows), strict=True))


def read_both(model: MergedModel, bare: MergedModel, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A merged tensor, and what the adapter has changed of it, with one reading of the base.

    Args:
        model: base and adapter.
        bare: the base alone.
        name: the tensor.

    Returns:
        B + D, and B where the adapter changes the tensor and leaves its shape; float32.
    """
    if model.grids is not None and name in model.changed:
        return model.read(name), bare.read(name)  # each on its grid, neither made from the other
    if name not in model.changed or name not in bare.names or model.shape(name) != bare.shape(name):
        return model.read(name), None
    base = bare.read(name)
    return model.adapted(name, base.clone()), base
