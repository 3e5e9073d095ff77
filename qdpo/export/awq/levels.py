"""Levels for what AWQ has scaled, chosen with feedback from one column to the next (`qdpo.export.feedback`).

llmcompressor finds the factors, and then takes the nearest level of each weight. Here the weights are merged anew in
float32 and multiplied by what AWQ has moved, with the gains of the norms as the file holds them: what the rounding of a
gain to 16 bits changes is made up for as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qdpo.export.awq.packing import Quantised
from qdpo.export.awq.plan import Plan
from qdpo.export.awq.smoothing import Smoothing
from qdpo.export.feedback import Corrections, Feedback, round_columns, round_floats
from qdpo.export.folder import rounded
from qdpo.export.gguf.chunks import row_chunks
from qdpo.model.grids import Columns, Layout, inverse_or_zero
from qdpo.model.merged import MergedModel
from qdpo.progress import Progress

TOP = 15
"""The largest level."""

OFFSET = 8
"""What compressed-tensors takes from zero points while a model is in memory."""

SHARES = (0.6, 1.05, 16)
"""Scales that are tried, as shares of the one that spans a group: the smallest, the largest, and how many."""

LEAST_IMPORTANCE = 1e-6
"""Of the mean: a group whose inputs were never seen to move still gets a scale."""

TOO_LARGE = "use --awq-layout compressed-tensors, or export gguf"


def choose_levels(whole: Any, model: MergedModel, plan: Plan, dtype: torch.dtype, corrections: Corrections) -> None:
    """Choose the levels of a model that llmcompressor has quantised anew, where the layers' inputs are known.

    Scales and zero points become those of the file, and weights what they stand for: packing them changes nothing.

    Args:
        whole: the model, its weights scaled by AWQ and not packed yet.
        model: the merged weights.
        plan: which layers, and in which groups.
        dtype: what the file holds gains, scales, and the layers that are kept in 16 bits in.
        corrections: the moments of the layers' inputs.

    Raises:
        InputMissingError: scales are too large for the dtype.
    """
    smoothing = Smoothing(model, model.names)

    def stored(name: str) -> Tensor:
        return whole.get_parameter(name).detach().cpu()

    for name in filter(smoothing.is_norm, smoothing.order):
        smoothing.factor(name, stored(name).to(dtype).float(), model.read(name))
    layers = {f"{layer}.weight" for layer in (*plan.layers, *plan.kept)}
    with Progress("choosing levels with feedback", len(layers), unit="layers") as progress:
        for name in filter(layers.__contains__, smoothing.order):
            merged = model.read(name)
            wanted = merged * smoothing.factor(name, stored(name).float(), merged)
            columns = smoothing.columns(name)
            moment, feedback = corrections.moments.of(name), corrections.of(name, columns)
            if moment is not None and feedback is not None:
                module = whole.get_submodule(name.removesuffix(".weight"))
                if name.removesuffix(".weight") in plan.kept:
                    module.weight.data = round_floats(wanted, feedback, dtype).to(module.weight.device)
                else:
                    importance = moment.scaled(1 / columns).diagonal
                    _put(module, round_with_feedback(name, wanted, plan.group, dtype, importance, feedback))
            progress.advance()


def _put(module: Any, chosen: Quantised) -> None:
    """Put what was chosen into a layer as llmcompressor keeps it."""
    module.weight.data.copy_(chosen.dequantised())
    module.weight_scale.data = chosen.scales.to(module.weight.device)
    module.weight_zero_point.data.copy_(chosen.zeros.to(module.weight_zero_point.dtype) - OFFSET)


def round_with_feedback(
    name: str, wanted: Tensor, group: int, dtype: torch.dtype, importance: Tensor, feedback: Feedback
) -> Quantised:
    """A layer in 4 bits.

    Args:
        name: the tensor's, for the message.
        wanted: float32 [rows, columns].
        group: columns that share a scale.
        dtype: what scales are stored in.
        importance: float32 [columns], the mean square of the input that each column is multiplied with.
        feedback: of the layer's inputs.

    Raises:
        InputMissingError: scales are too large for the dtype.
    """
    scales, zeros = fit_groups(wanted, group, importance)
    scales = rounded(f"{name}_scale", scales, dtype, hint=TOO_LARGE).float()
    codes = torch.empty(wanted.shape, dtype=torch.uint8)

    def round_rows(start: int, rows: Tensor) -> None:
        own = slice(start, start + len(rows))
        scale, zero = (part[own].T.contiguous().to(rows.device) for part in (scales, zeros))
        grid = Columns(Layout(group, 1, TOP), scale, -zero * scale, inverse_or_zero(scale))
        codes[own] = round_columns(rows, feedback.to(rows.device), grid.round).cpu()

    row_chunks(round_rows, wanted, None, by_column=True)
    return Quantised(codes, zeros.to(torch.uint8), scales)


def fit_groups(weight: Tensor, group: int, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and zero points with which the nearest levels lose least, each square counted by its column's importance.

    Args:
        weight: float32 [rows, columns].
        group: columns that share a scale.
        importance: float32 [columns].

    Returns:
        float32 [rows, groups] both, the zero points whole numbers of 0 to 15.
    """
    scales, zeros = (torch.empty(weight.shape[0], weight.shape[1] // group) for _ in range(2))

    def fit_rows(start: int, rows: Tensor) -> None:
        own = slice(start, start + len(rows))
        scales[own], zeros[own] = (part.cpu() for part in _fitted(rows, group, importance.to(rows.device)))

    row_chunks(fit_rows, weight, None)
    return scales, zeros


def _fitted(weight: Tensor, group: int, importance: Tensor) -> tuple[Tensor, Tensor]:
    """`fit_groups` of a few rows: shares of the range are tried, and each choice of levels gets its best scale."""
    x = weight.unflatten(1, (-1, group))
    counts = importance.clamp(min=importance.mean() * LEAST_IMPORTANCE).view(-1, group)
    low, high = x.amin(2, keepdim=True).clamp(max=0), x.amax(2, keepdim=True).clamp(min=0)
    best_gain, best_scale, best_zero = torch.zeros_like(low), (high - low) / TOP, torch.zeros_like(low)
    for share in torch.linspace(*SHARES).tolist():
        inverse = inverse_or_zero((high - low) * share / TOP)
        zero = (-low * share * inverse).round().clamp_(0, TOP)
        level = (x * inverse + zero).round_().clamp_(0, TOP).sub_(zero)
        weighted = counts * level
        along, size = (weighted * x).sum(2, keepdim=True), (weighted * level).sum(2, keepdim=True)
        gain = along.square() * inverse_or_zero(size)  # what the squared error is less by than that of a scale of 0
        better = (gain > best_gain) & (along > 0)
        best_gain = torch.where(better, gain, best_gain)
        best_scale = torch.where(better, along * inverse_or_zero(size), best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return best_scale.squeeze(2), best_zero.squeeze(2)
