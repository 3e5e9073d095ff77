"""What is known of the inputs of a model's linear layers: their second moments, small enough to lie beside an adapter.

Rounding a weight W to Q changes what its layer gives for an input x by (Q - W) x. Over many inputs the squared change
is tr((Q - W) H (Q - W)^T) with H the mean of x x^T: this is the metric in which a rounding is good or bad, and in
which one can say how much of a small change of the weights is left. H itself is columns x columns, 800 MB for one
layer of a 7B model. What is kept is its diagonal and a factor of low rank (Nystrom's approximation: H Q (Q^T H Q)^-1
Q^T H for a few directions Q, see Halko, Martinsson, Tropp, arXiv 0909.4061), with the adapter's own input directions
among them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qdpo.errors import InputMissingError, first_line
from qdpo.files import atomic_write

MOMENTS = "moments.safetensors"
"""The file, in the run directory."""

DIRECTIONS = 128
"""Directions that are kept of each input, the adapter's not counted."""

POWER = 1
"""How often the directions are turned towards the largest variance: with one turn they hold nearly as much of H as its
leading eigenvectors do."""

_KEY = "qdpo"


@dataclass(frozen=True)
class Moment:
    """H = diag(rest) + factor @ factor.T, the second moment of a layer's inputs.

    Attributes:
        rest: [columns], not negative.
        factor: [columns, rank].
    """

    rest: Tensor
    factor: Tensor

    @property
    def diagonal(self) -> Tensor:
        """Mean of x^2, [columns]."""
        return self.rest + self.factor.square().sum(1)

    def inner(self, one: Tensor, other: Tensor) -> float:
        """tr(one H other^T) of two matrices [rows, columns]."""
        apart = torch.einsum("ij,ij,j->", one, other, self.rest)
        return float(apart + ((one @ self.factor) * (other @ self.factor)).sum())

    def scaled(self, times: Tensor) -> Moment:
        """That of the inputs multiplied by `times`, [columns]."""
        return Moment(self.rest * times.square(), self.factor * times.unsqueeze(1))

    def emphasised(self, directions: Tensor, times: float) -> Moment:
        """H with the part that lies in the span of some directions counted 1 + times fold.

        Args:
            directions: [count, columns], such as an adapter's A.
            times: 0 leaves H as it is.
        """
        if not times:
            return self
        seen = self.rest.unsqueeze(1) * directions.T + self.factor @ (self.factor.T @ directions.T)
        return Moment(self.rest, torch.cat([self.factor, times**0.5 * _root(seen, directions @ seen)], 1))


def moment_of(inputs: Tensor, directions: Tensor, rank: int = DIRECTIONS, seed: int = 0) -> Moment:
    """The second moment of a layer's inputs.

    Args:
        inputs: float32 [tokens, columns].
        directions: [count, columns] that are among those of the factor: the A of the adapters that read these inputs.
        rank: of the factor, beside `directions`.
        seed: of the random directions that it starts from.
    """
    columns = inputs.shape[1]
    mean_square = inputs.square().mean(0)
    generator = torch.Generator(device=inputs.device).manual_seed(seed)
    start = torch.randn(columns, min(rank, columns), generator=generator, device=inputs.device)
    for _ in range(POWER):
        start = torch.linalg.qr(_seen(inputs, start))[0]
    span = torch.linalg.qr(torch.cat([directions.T.to(start), start], 1))[0]
    seen = _seen(inputs, span)
    factor = _root(seen, span.T @ seen)
    return Moment((mean_square - factor.square().sum(1)).clamp_(min=0), factor)


def _seen(inputs: Tensor, directions: Tensor) -> Tensor:
    """H @ directions, [columns, count]."""
    return inputs.T @ (inputs @ directions) / len(inputs)


def _root(seen: Tensor, inner: Tensor) -> Tensor:
    """F with F F^T = H Q (Q^T H Q)^+ Q^T H.

    Args:
        seen: H Q, [columns, count].
        inner: Q^T H Q, [count, count].
    """
    values, vectors = torch.linalg.eigh(inner.double())
    kept = values > values.max() * 1e-7  # below, float32 inputs hold nothing but their own rounding
    return (seen.double() @ (vectors[:, kept] / values[kept].sqrt())).to(seen.dtype)


@dataclass(frozen=True)
class About:
    """What moments were taken of.

    Attributes:
        adapter_sha256: of the adapter's weights, with which the inputs were computed.
        tokens: how many inputs of each layer.
        texts: what they were, in words.
    """

    adapter_sha256: str
    tokens: int
    texts: str


class Moments:
    """The second moments of a model, read from a file layer by layer.

    Args:
        path: the file.

    Raises:
        InputMissingError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                found = json.loads((file.metadata() or {})[_KEY])
                self.about = About(**found["about"])
                self._places: dict[str, str] = found["places"]
                self.names = set(self._places)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise InputMissingError(
                f"{path} does not hold moments: {first_line(error)}",
                "remove it; `qdpo merge-export --rounding feedback` takes them anew",
            ) from None

    def of(self, weight: str) -> Moment | None:
        """The moment of the inputs of a weight of the model, by its name; None for one that has none."""
        place = self._places.get(weight)
        if place is None:
            return None
        with safe_open(self.path, framework="pt") as file:
            rest, factor = (file.get_tensor(f"{place}.{part}").float() for part in ("rest", "factor"))
        scale = rest[0]  # the first number is the unit that the others are counted in
        return Moment(rest[1:] * scale, factor * scale.sqrt())


def save_moments(path: Path, moments: Mapping[str, Moment], places: Mapping[str, str], about: About) -> None:
    """Write moments to a file, in half precision.

    Args:
        path: the file.
        moments: of the inputs, each under the name of a place.
        places: name of a weight -> the place that it reads its inputs at; several read at one.
        about: what they were taken of.

    Raises:
        DiskError, OutputError: it cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for place, moment in moments.items():
        unit = moment.diagonal.mean().clamp(min=1e-30)  # activations differ by orders of magnitude between layers
        tensors[f"{place}.rest"] = torch.cat([unit.view(1), moment.rest / unit]).cpu()
        tensors[f"{place}.factor"] = (moment.factor / unit.sqrt()).half().cpu()
    held: dict[str, Any] = {"about": vars(about), "places": dict(places)}
    atomic_write(path, save(tensors, {_KEY: json.dumps(held)}))
