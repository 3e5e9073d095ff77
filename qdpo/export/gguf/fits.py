"""Finding the grid of a matrix, plainly or weighted by the importance of its columns."""

from __future__ import annotations

import torch
from gguf import GGMLQuantizationType as Type

from qdpo.export.gguf.chunks import row_chunks
from qdpo.export.gguf.searches import (
    fit_codebook_scale,
    fit_scale,
    fit_scale_and_minimum,
    fit_unit,
    half_not_smaller,
    refine_scale_and_minimum,
)
from qdpo.model.grids import LAYOUTS, Grid, Layout, inverse_or_zero, joined

LARGEST = 1e6
"""Values above are refused: near the end of what scales in float16 can hold, and of no use in a weight."""

_LEAST_IMPORTANCE = 1e-6
"""Of the mean: a block whose inputs were never seen to move still gets a scale."""

_PLAIN_SEARCH = {Type.Q4_K: (14.0, 2.0, 11), Type.Q5_K: (30.25, 1.5, 9)}
"""The smallest divisor of a block's range that is tried, how far they reach above it, and how many are tried."""


def fit(
    x: torch.Tensor, kind: Type, importance: torch.Tensor | None = None, device: torch.device | None = None
) -> Grid:
    """The grid of a matrix.

    Args:
        x: float32 [rows, columns], columns a multiple of the type's super-block.
        kind: any of `grids.LAYOUTS`.
        importance: float32 [columns], the mean square of the input that each column is multiplied with.
        device: where to compute and keep it; None takes the GPU when there is one.

    Raises:
        OverflowError: values are too large for the type.
    """
    grids: dict[int, Grid] = {}

    def fit_chunk(start: int, part: torch.Tensor) -> None:
        grids[start] = fit_rows(part, kind, importance)

    row_chunks(fit_chunk, x, device)
    return joined([grids[start] for start in sorted(grids)])


def fit_rows(x: torch.Tensor, kind: Type, importance: torch.Tensor | None = None) -> Grid:
    """`fit` of a few rows at once, where they are."""
    top = max(abs(value.item()) for value in torch.aminmax(x)) if x.numel() else 0.0
    if top > LARGEST:
        raise OverflowError(f"values up to {top:.6g} do not fit {kind.name}")
    if importance is not None:
        importance = importance.to(x.device).clamp(min=max(importance.mean().item() * _LEAST_IMPORTANCE, 1e-30))
    layout = LAYOUTS[kind]
    if layout.blocks == 1:
        grid = _single(x, kind, layout, importance)
    elif layout.zero or layout.codebook:
        grid = _signed(x, kind, layout, importance)
    else:
        grid = _with_minimums(x, kind, layout, importance)
    if not all(torch.isfinite(part).all() for part in (grid.d, grid.dmin) if part is not None):
        raise OverflowError(f"values up to {top:.6g} do not fit {kind.name}")
    return grid


def _single(x: torch.Tensor, kind: Type, layout: Layout, importance: torch.Tensor | None) -> Grid:
    """Types whose blocks each have a scale, and a low, of their own in float16."""
    rows, blocks = x.shape[0], x.reshape(-1, layout.block)
    low = None
    if kind is Type.Q8_0:
        scale = blocks.abs().amax(1, keepdim=True) / 127
    elif importance is not None or layout.codebook:
        weight = _weight(x, kind, layout, importance)
        if layout.codebook or layout.zero:
            scale = _signed_scale(blocks, weight, layout, tries=19)
        else:
            scale, minimum = refine_scale_and_minimum(blocks, weight, layout.top)
            low = -minimum
    elif layout.zero:
        scale = blocks.gather(1, blocks.abs().argmax(1, keepdim=True)) / -layout.zero
    else:
        low = blocks.amin(1, keepdim=True)
        scale = (blocks.amax(1, keepdim=True) - low) / layout.top
    d = scale.view(rows, -1).half()
    return Grid.of_stored(kind, d, dmin=None if low is None else low.view(rows, -1).half())


def _signed(x: torch.Tensor, kind: Type, layout: Layout, importance: torch.Tensor | None) -> Grid:
    """Q6_K, Q3_K and IQ4_XS: integer scales with signs times a float16."""
    rows, blocks = x.shape[0], x.reshape(-1, layout.block)
    weight = _weight(x, kind, layout, importance)
    scale = _signed_scale(blocks, weight, layout, tries=9 if importance is None else 19).view(-1, layout.blocks)
    lowest, highest = -layout.largest, layout.largest - 1
    if importance is None:
        d = half_not_smaller(scale.gather(1, scale.abs().argmax(1, keepdim=True)) / lowest)
    else:
        d = fit_unit(scale, weight.sum(1).view(scale.shape), lowest, highest)
    scales = (scale * inverse_or_zero(d.float())).round_().clamp_(lowest, highest)
    return Grid.of_stored(kind, d.view(rows, -1), scales.to(torch.int8).view(rows, -1))


def _with_minimums(x: torch.Tensor, kind: Type, layout: Layout, importance: torch.Tensor | None) -> Grid:
    """Q2_K, Q4_K and Q5_K: integer scales and minimums times a float16 each."""
    rows, blocks, largest = x.shape[0], x.reshape(-1, layout.block), layout.largest
    weight = _weight(x, kind, layout, importance)
    if importance is None and kind in _PLAIN_SEARCH:
        scale, minimum = fit_scale_and_minimum(blocks, weight, layout.top, *_PLAIN_SEARCH[kind])
    else:
        scale, minimum = refine_scale_and_minimum(blocks, weight, layout.top)
    scale, minimum = scale.view(-1, layout.blocks), minimum.view(-1, layout.blocks)
    if importance is None:
        d, dmin = (half_not_smaller(part.amax(1, keepdim=True) / largest) for part in (scale, minimum))
    else:
        weights = weight.sum(1).view(scale.shape)
        d, dmin = (fit_unit(part, weights, 0, largest) for part in (scale, minimum))
    scales = (scale * inverse_or_zero(d.float())).round_().clamp_(0, largest)
    minimums = (minimum * inverse_or_zero(dmin.float())).round_().clamp_(0, largest)
    return Grid.of_stored(
        kind,
        d.view(rows, -1),
        scales.to(torch.uint8).view(rows, -1),
        dmin.view(rows, -1),
        minimums.to(torch.uint8).view(rows, -1),
    )


def _signed_scale(blocks: torch.Tensor, weight: torch.Tensor, layout: Layout, tries: int) -> torch.Tensor:
    if layout.codebook:
        return fit_codebook_scale(blocks, weight)
    return fit_scale(blocks, weight, -layout.zero, layout.zero - 1, tries)


def _weight(x: torch.Tensor, kind: Type, layout: Layout, importance: torch.Tensor | None) -> torch.Tensor:
    """What a squared error in each weight counts: more in a large one, and as its column's importance says.

    Returns:
        float32 [blocks, weights of a block].
    """
    blocks = x.reshape(-1, layout.block)
    if importance is None:
        if kind in (Type.Q4_K, Type.Q5_K):
            return blocks.square().mean(1, keepdim=True).sqrt() + blocks.abs()
        return blocks.abs() if kind in (Type.Q2_K, Type.Q3_K) else blocks * blocks
    if kind is Type.Q6_K:
        return importance.expand(x.shape).reshape(blocks.shape)
    # A weight of 0 counts as one of this share of the mean square would.
    whole_row = layout.blocks == 1 and not layout.codebook
    square = x.reshape(-1, x.shape[1] if whole_row else layout.block * layout.blocks).square()
    share = 1.0 if whole_row or kind is Type.Q2_K else 2.0
    size = square.add_(square.mean(1, keepdim=True) * share).sqrt_()
    return (size.view(x.shape) * importance).view(blocks.shape)
