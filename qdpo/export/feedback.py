"""Rounding with error feedback: each column of a weight makes up for what rounding the columns before it has changed.

With H the second moment of the layer's inputs and H = U D U^T, U unit upper triangular, the levels that are chosen one
column after the other as

    q_j = round(w_j + sum over i < j of (w_i - q_i) U_ij)

keep tr((W - Q) H (W - Q)^T) small: this is GPTQ (arXiv 2210.17323) in the form of LDLQ (QuIP, arXiv 2307.13304).
Rounding each weight to its nearest level instead loses a small trained change where the base has few values, as an
NF4 base has: all weights of one value lie at the same place between two levels, and a change smaller than the
distance to the border moves none of them. With feedback the change adds up along the row until it moves a level.

H is diagonal and a factor of low rank (`qdpo.model.moments`), so U need not be made: U_ij = F_i . G_j for i < j.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qdpo.console import note
from qdpo.export.formats import Way
from qdpo.export.moments import TOKENS, moments_of_run, take_moments
from qdpo.export.source import TrainedRun
from qdpo.model.adapter import Adapter
from qdpo.model.moments import Moment, Moments

DAMPING = 0.03
"""Share of the mean square of the inputs that is added to each column's: keeps errors from being pushed into columns
that calibration has hardly seen."""

EMPHASIS = 10.0
"""How much more an error counts where the adapter looks at the inputs."""

WIDTH = 64
"""Columns between two products with the factor."""


@dataclass(frozen=True)
class Feedback:
    """U of a layer's inputs.

    Attributes:
        order: the columns, in the order in which they are rounded.
        given: F, [columns, rank], in that order.
        taken: G, [columns, rank], likewise.
    """

    order: Tensor
    given: Tensor
    taken: Tensor

    def to(self, device: torch.device) -> Feedback:
        """The same on a device."""
        return Feedback(self.order.to(device), self.given.to(device), self.taken.to(device))


@dataclass(frozen=True)
class Corrections:
    """The feedback of each tensor of a run.

    Attributes:
        moments: of the layers' inputs.
        adapter: whose input directions are emphasised.
    """

    moments: Moments
    adapter: Adapter

    def of(self, name: str, columns: Tensor | None = None) -> Feedback | None:
        """That of a tensor; None where its inputs are not known.

        Args:
            name: the tensor's, in the model.
            columns: what its columns were multiplied by, and its inputs divided by.
        """
        moment, directions = self.moments.of(name), self.adapter.directions(name)
        if moment is None:
            return None
        if columns is not None:
            moment, directions = moment.scaled(1 / columns), None if directions is None else directions * columns
        return feedback_of(moment, directions)


def corrections_of(run: TrainedRun, way: Way | None) -> Corrections | None:
    """How a run's tensors are rounded; None takes the nearest level.

    Args:
        run: the run.
        way: as asked for; None takes feedback where the run has moments.

    Raises:
        InputMissingError: the moments cannot be read.
        UnavailableError: they were asked for and cannot be taken.
    """
    if way == "nearest":
        return None
    moments = moments_of_run(run)
    if moments is None and way == "feedback":
        moments = take_moments(run)
    return None if moments is None else Corrections(moments, Adapter(run.adapter))


def way_of(corrections: Corrections | None) -> Way:
    """What `corrections_of` has found, for export.json."""
    return "nearest" if corrections is None else "feedback"


def note_nearest() -> None:
    """Say what a run without moments means for an export whose rounding was not chosen."""
    note(
        "rounding to the nearest level, which may lose part of what was trained: the run has no moments of its "
        f"layers' inputs; --rounding feedback takes them first (one pass over {TOKENS:,} tokens)"
    )


def feedback_of(moment: Moment, directions: Tensor | None = None, damping: float = DAMPING) -> Feedback:
    """U of H + damping * mean(diagonal), in a time of columns times the rank's square.

    The columns with the largest inputs come first, because more columns are left then to make up for their errors
    (GPTQ's activation order; here a column stays in its own block, whenever it is rounded). The rest goes block by
    block from the last column: its own factor U D U^T, then what it takes from the columns before it.

    Args:
        moment: H.
        directions: [count, columns] in which errors count more, such as an adapter's A.
        damping: share of the diagonal's mean that is added to it.
    """
    order = moment.diagonal.argsort(descending=True, stable=True)
    if directions is not None:
        moment = moment.emphasised(directions, EMPHASIS)
    factor = moment.factor.double()[order]
    rest = moment.rest.double()[order] + damping * moment.diagonal.double().mean().clamp(min=1e-30)
    columns, rank = factor.shape
    # What is left of the factor's inner product when all later columns have been eliminated.
    inner, taken = torch.eye(rank, dtype=torch.float64), torch.empty_like(factor)
    for begin in reversed(range(0, columns, WIDTH)):
        own = slice(begin, min(begin + WIDTH, columns))
        seen = factor[own] @ inner
        block = seen @ factor[own].T
        block.diagonal().add_(rest[own])
        upper = torch.linalg.cholesky(block.flip(0, 1)).flip(0, 1)
        scale = upper.diagonal()
        seen = torch.linalg.solve_triangular(upper / scale, seen, upper=True, unitriangular=True)
        taken[own] = seen / scale.square().unsqueeze(1)
        inner -= seen.T @ taken[own]
    return Feedback(order, factor.float(), taken.float())


def round_columns(
    weight: Tensor,
    feedback: Feedback,
    nearest: Callable[[int, Tensor], tuple[Tensor, Tensor]],
    dtype: torch.dtype = torch.uint8,
) -> Tensor:
    """Choose levels column by column, in the feedback's order.

    Args:
        weight: float32 [rows, columns].
        feedback: of the layer's inputs.
        nearest: gives levels and values [rows] of a column, by its index and what shall be rounded [rows].
        dtype: of the levels.

    Returns:
        levels [rows, columns].
    """
    given, taken = feedback.given, feedback.taken
    target = weight.T[feedback.order]
    places = feedback.order.tolist()
    rows, columns = weight.shape
    levels = torch.empty(columns, rows, dtype=dtype, device=weight.device)
    state = weight.new_zeros(given.shape[1], rows)
    for begin in range(0, columns, WIDTH):
        end = min(begin + WIDTH, columns)
        wanted = torch.addmm(target[begin:end], taken[begin:end], state)
        near = (given[begin:end] @ taken[begin:end].T).T.contiguous()  # near[j, i] = U_ij
        error = weight.new_empty(end - begin, rows)
        for column in range(begin, end):
            here = column - begin
            value = wanted[here]
            if here:
                value = torch.addmv(value, error[:here].T, near[here, :here])
            levels[places[column]], rounded = nearest(places[column], value)
            torch.sub(target[column], rounded, out=error[here])
        state.addmm_(given[begin:end].T, error)
    return levels.T.contiguous()


def round_floats(weight: Tensor, feedback: Feedback, dtype: torch.dtype) -> Tensor:
    """A weight float32 [rows, columns] in 16 bits.

    A base that was loaded in 16 bits stands on that grid exactly; a change of less than half a step is rounded away.
    """

    def nearest(_: int, target: Tensor) -> tuple[Tensor, Tensor]:
        stored = target.to(dtype)
        return stored, stored.float()

    return round_columns(weight, feedback, nearest, dtype)
