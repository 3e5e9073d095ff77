"""Finding the grid of a matrix, plainly or weighted by the importance of its columns.

The searches are the mathematics of llama.cpp's encoders (MIT, see NOTICE), vectorised in torch, on the CPU or a GPU:
try scales around the one that spans the block, round, solve the weighted least squares for that rounding, keep the
best.
"""

from __future__ import annotations

import torch
from gguf import GGMLQuantizationType as Type

from qdpo.export.gguf.chunks import row_chunks
from qdpo.export.gguf.grids import LAYOUTS, Grid, Layout, inverse_or_zero, joined

LARGEST = 1e6
"""Values above are refused: near the end of what scales in float16 can hold, and of no use in a weight."""

_LEAST_IMPORTANCE = 1e-6
"""Of the mean: a block whose inputs were never seen to move still gets a scale."""


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
    elif layout.zero:
        grid = _signed(x, kind, layout, importance)
    else:
        grid = _with_minimums(x, kind, layout, importance)
    if not all(torch.isfinite(part).all() for part in (grid.d, grid.dmin) if part is not None):
        raise OverflowError(f"values up to {top:.6g} do not fit {kind.name}")
    return grid


def _single(x: torch.Tensor, kind: Type, layout: Layout, importance: torch.Tensor | None) -> Grid:
    """Types whose blocks each have a scale, and a low, of their own in float16."""
    rows, blocks = x.shape[0], x.reshape(-1, layout.block)
    weight = None if importance is None else _weights(x, importance, x.shape[1], 1.0).view(-1, layout.block)
    low = None
    if kind is Type.Q8_0:
        scale = blocks.abs().amax(1, keepdim=True) / 127
    elif layout.zero:
        if weight is None:
            scale = blocks.gather(1, blocks.abs().argmax(1, keepdim=True)) / -layout.zero
        else:
            scale = fit_scale(blocks, weight, -layout.zero, layout.zero - 1, tries=19)
    elif weight is None:
        low = blocks.amin(1, keepdim=True)
        scale = (blocks.amax(1, keepdim=True) - low) / layout.top
    else:
        scale, minimum = fit_scale_and_minimum(blocks, weight, layout.top, layout.top - 0.9, 1.8, tries=37)
        low = -minimum
    d = scale.view(rows, -1).half()
    if low is None:
        return Grid(kind, d.float(), -layout.zero * d.float(), d)
    stored = low.view(rows, -1).half()
    return Grid(kind, d.float(), stored.float(), d, dmin=stored)


def _signed(x: torch.Tensor, kind: Type, layout: Layout, importance: torch.Tensor | None) -> Grid:
    """Q6_K: sixteen scales of 8 bits, with signs, times a float16."""
    rows, blocks = x.shape[0], x.reshape(-1, layout.block)
    if importance is None:
        scale = fit_scale(blocks, blocks * blocks, -layout.zero, layout.zero - 1, tries=9)
    else:
        weight = importance.expand(x.shape).reshape(blocks.shape)
        scale = fit_scale(blocks, weight, -layout.zero, layout.zero - 1, tries=19)
    scale = scale.view(-1, layout.blocks)
    d = half_not_smaller(scale.gather(1, scale.abs().argmax(1, keepdim=True)) / -128)
    scales = (scale * inverse_or_zero(d.float())).round_().clamp_(-128, 127)
    stored = (d.float() * scales).view(rows, -1)
    return Grid(kind, stored, -layout.zero * stored, d.view(rows, -1), scales.to(torch.int8).view(rows, -1))


_PLAIN_SEARCH = {Type.Q4_K: (14.0, 2.0, 11), Type.Q5_K: (30.25, 1.5, 9)}
"""The smallest divisor of a block's range that is tried, how far they reach above it, and how many are tried."""


def _with_minimums(x: torch.Tensor, kind: Type, layout: Layout, importance: torch.Tensor | None) -> Grid:
    """Q4_K and Q5_K: eight scales and eight minimums of 6 bits, times a float16 each."""
    rows, blocks = x.shape[0], x.reshape(-1, layout.block)
    if importance is None:
        # An error in a large weight counts more.
        weight = blocks.square().mean(1, keepdim=True).sqrt() + blocks.abs()
        scale, minimum = fit_scale_and_minimum(blocks, weight, layout.top, *_PLAIN_SEARCH[kind])
        scale, minimum = scale.view(-1, layout.blocks), minimum.view(-1, layout.blocks)
        d, dmin = (half_not_smaller(part.amax(1, keepdim=True) / 63) for part in (scale, minimum))
    else:
        weight = _weights(x, importance, layout.block * layout.blocks, 2.0).view(blocks.shape)
        scale, minimum = fit_scale_and_minimum(blocks, weight, layout.top, layout.top - 0.9, 1.8, tries=37)
        scale, minimum = scale.view(-1, layout.blocks), minimum.view(-1, layout.blocks)
        weights = weight.sum(1).view(-1, layout.blocks)
        d, dmin = (fit_scale(part, weights, 0, 63, tries=9).half() for part in (scale, minimum))
    scales = (scale * inverse_or_zero(d.float())).round_().clamp_(0, 63)
    minimums = (minimum * inverse_or_zero(dmin.float())).round_().clamp_(0, 63)
    return Grid(
        kind,
        (d.float() * scales).view(rows, -1),
        -(dmin.float() * minimums).view(rows, -1),
        d.view(rows, -1),
        scales.to(torch.uint8).view(rows, -1),
        dmin.view(rows, -1),
        minimums.to(torch.uint8).view(rows, -1),
    )


def _weights(x: torch.Tensor, importance: torch.Tensor, span: int, share: float) -> torch.Tensor:
    """How much an error in each weight counts: its column's importance, and more in a large weight.

    Args:
        x: [rows, columns].
        importance: [columns].
        span: weights over which the mean square is taken, a part of a row.
        share: times that mean square is what a weight of 0 counts.
    """
    parts = x.reshape(-1, span)
    square = parts * parts
    size = square.add_(square.mean(1, keepdim=True) * share).sqrt_()
    return size.view(x.shape) * importance


def fit_scale(x: torch.Tensor, weight: torch.Tensor, lowest: int, highest: int, tries: int) -> torch.Tensor:
    """The scale s per block that makes the sum of weight * (x - s * q)^2 least, q a whole number in lowest..highest.

    Args:
        x: [blocks, n]; not negative where `lowest` is 0.
        weight: [blocks, n].
        lowest: of the levels.
        highest: of the levels.
        tries: how many scales around the one that spans the block are tried.

    Returns:
        [blocks, 1]; 0 for a block of zeros.
    """
    extreme = x.gather(1, x.abs().argmax(1, keepdim=True))  # with its sign: signed levels reach one further below
    start = (-1 if lowest else 1) * inverse_or_zero(extreme)
    span = -lowest or highest
    weighted = weight * x
    best_gain, best_scale = torch.zeros_like(extreme), torch.zeros_like(extreme)
    q, product, square = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    for attempt in range(tries):
        torch.mul(x, start * (span - 0.9 + 1.8 * attempt / (tries - 1)), out=q).round_().clamp_(lowest, highest)
        sum_wxq = torch.mul(weighted, q, out=product).sum(1, keepdim=True)
        sum_wqq = torch.mul(torch.mul(weight, q, out=product), q, out=square).sum(1, keepdim=True)
        scale = sum_wxq / sum_wqq
        gain = scale * sum_wxq
        better = gain > best_gain  # NaN (an empty block) compares false
        best_gain = torch.where(better, gain, best_gain)
        best_scale = torch.where(better, scale, best_scale)
    return best_scale


def fit_scale_and_minimum(
    x: torch.Tensor, weight: torch.Tensor, top: int, least: float, reach: float, tries: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale s and minimum m per block such that x is about s * q - m, q in 0..top, m >= 0.

    Args:
        x: [blocks, n].
        weight: [blocks, n]: what a squared error counts.
        top: largest q.
        least: the smallest divisor of the block's range that is tried.
        reach: how far the tried divisors reach above the smallest.
        tries: how many are tried.

    Returns:
        s and m, both [blocks, 1].
    """
    low = x.amin(1, keepdim=True).clamp_(max=0.0)
    span = (x.amax(1, keepdim=True) - low).clamp_(min=1e-30)
    weighted = weight * x
    sum_w, sum_wx = weight.sum(1, keepdim=True), weighted.sum(1, keepdim=True)
    best_gain = torch.full_like(low, -torch.inf)
    best_scale, best_low = span / top, low.clone()
    above_low, q, product, square = x - low, torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    for attempt in range(tries):
        inverse = (least + reach * attempt / (tries - 1)) / span
        torch.mul(above_low, inverse, out=q).round_().clamp_(max=top)
        sum_wxq = torch.mul(weighted, q, out=product).sum(1, keepdim=True)
        sum_wq = torch.mul(weight, q, out=product).sum(1, keepdim=True)
        sum_wqq = torch.mul(product, q, out=square).sum(1, keepdim=True)
        # Weighted least squares for x = s * q + l with these q; a positive l is not representable and becomes 0.
        det = sum_w * sum_wqq - sum_wq * sum_wq
        scale = (sum_w * sum_wxq - sum_wx * sum_wq) / det
        level = (sum_wqq * sum_wx - sum_wq * sum_wxq) / det
        above = level > 0
        scale = torch.where(above, sum_wxq / sum_wqq, scale)
        level = level.masked_fill_(above, 0.0)
        # The squared error is sum(w x x) minus this gain. NaN (a block of one value) compares false.
        gain = scale * sum_wxq + level * sum_wx
        better = (gain > best_gain) & (scale > 0)
        best_gain = torch.where(better, gain, best_gain)
        best_scale = torch.where(better, scale, best_scale)
        best_low = torch.where(better, level, best_low)
    return best_scale, -best_low


def half_not_smaller(x: torch.Tensor) -> torch.Tensor:
    """float16 of at least x's magnitude.

    A super-block's scale is often so small that float16 has few bits for it (below 6e-5). Rounded down, the largest
    block's own scale would not fit its integer any more.
    """
    half = x.half()
    too_small = half.float().abs() < x.abs()
    return (half.view(torch.int16) + too_small.to(torch.int16)).view(torch.float16)
