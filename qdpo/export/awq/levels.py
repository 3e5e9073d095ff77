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
from qdpo.export.feedback import Corrections, Feedback, feedback_of, round_columns, round_floats
from qdpo.export.folder import rounded
from qdpo.export.gguf.chunks import row_chunks
from qdpo.export.gguf.grids import Columns, Layout, inverse_or_zero
from qdpo.model.merged import MergedModel
from qdpo.progress import Progress

TOP = 15
"""The largest level."""

OFFSET = 8
"""What compressed-tensors takes from zero points while a model is in memory."""

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
    smoothing, layers = Smoothing(model, model.names), {*plan.layers, *plan.kept}
    names = [name for name in smoothing.order if smoothing.is_norm(name) or name.removesuffix(".weight") in layers]
    with Progress("choosing levels with feedback", len(names), unit="tensors") as progress:
        for name in names:
            found, merged = whole.get_parameter(name).detach().cpu(), model.read(name)
            stored = found.to(dtype) if smoothing.is_norm(name) else found
            factor = smoothing.factor(name, stored.float(), merged)
            moment = corrections.moment(name)
            if moment is not None:
                feedback = feedback_of(moment.scaled(1 / smoothing.columns(name)))
                _replace(whole, name, merged * factor, plan, dtype, feedback)
            progress.advance()


def _replace(whole: Any, name: str, wanted: Tensor, plan: Plan, dtype: torch.dtype, feedback: Feedback) -> None:
    """Put a layer's chosen values into the model."""
    layer = name.removesuffix(".weight")
    module = whole.get_submodule(layer)
    if layer in plan.kept:
        module.weight.data = round_floats(wanted, feedback, dtype).to(module.weight.device)
        return
    chosen = round_with_feedback(name, wanted, plan.group, dtype, feedback)
    module.weight.data.copy_(chosen.dequantised())
    module.weight_scale.data = chosen.scales.to(module.weight.device)
    module.weight_zero_point.data.copy_(chosen.zeros.to(module.weight_zero_point.dtype) - OFFSET)


def round_with_feedback(name: str, wanted: Tensor, group: int, dtype: torch.dtype, feedback: Feedback) -> Quantised:
    """A layer in 4 bits.

    Args:
        name: the tensor's, for the message.
        wanted: float32 [rows, columns].
        group: columns that share a scale.
        dtype: what scales are stored in.
        feedback: of the layer's inputs.

    Raises:
        InputMissingError: scales are too large for the dtype.
    """
    scales, zeros = fit_groups(wanted, group)
    scales = rounded(f"{name}_scale", scales, dtype, hint=TOO_LARGE).float()
    codes = torch.empty(wanted.shape, dtype=torch.uint8)

    def round_rows(start: int, rows: Tensor) -> None:
        own = slice(start, start + len(rows))
        scale, zero = (part[own].T.contiguous().to(rows.device) for part in (scales, zeros))
        grid = Columns(Layout(group, 1, TOP), scale, -zero * scale, inverse_or_zero(scale))
        codes[own] = round_columns(rows, feedback.to(rows.device), grid.round).cpu()

    row_chunks(round_rows, wanted, None, by_column=True)
    return Quantised(codes, zeros.to(torch.uint8), scales)


def fit_groups(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Scales and zero points that span each group and 0, as llmcompressor has them.

    Args:
        weight: float32 [rows, columns].
        group: columns that share a scale.

    Returns:
        float32 [rows, groups] both, the zero points whole numbers of 0 to 15.
    """
    grouped = weight.unflatten(1, (-1, group))
    low, high = grouped.amin(2).clamp(max=0), grouped.amax(2).clamp(min=0)
    scales = (high - low) / TOP
    return scales, (-low * inverse_or_zero(scales)).round()
