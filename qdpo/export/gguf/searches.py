"""Searches for the scale of a block, vectorised in torch, on the CPU or a GPU.

They are the mathematics of llama.cpp's encoders (MIT, see NOTICE): try scales around the one that spans the block,
round, solve the weighted least squares for that rounding, keep the best.
"""

from __future__ import annotations

import torch

from qdpo.model.grids import IQ4, codebook, inverse_or_zero


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
        best_gain, best_scale = _better(best_gain, best_scale, sum_wxq, sum_wqq)
    return best_scale


def fit_codebook_scale(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The scale s per block that makes the sum of weight * (x - s * c)^2 least, c one of `IQ4`.

    Args:
        x: [blocks, n].
        weight: [blocks, n].

    Returns:
        [blocks, 1]; 0 for a block of zeros.
    """
    extreme = x.gather(1, x.abs().argmax(1, keepdim=True))
    start = inverse_or_zero(extreme.masked_fill_(extreme.abs() < 1e-15, 0.0))
    levels = codebook(x.device)
    weighted = weight * x
    best_gain, best_scale = torch.zeros_like(extreme), torch.zeros_like(extreme)
    # The largest weight becomes the first value or one up to 7 from it, or, in the first attempt, the last.
    for target in (-IQ4[0], *range(IQ4[0] - 7, IQ4[0] + 8)):
        c = levels.round(x * (start * target))
        sum_wxc, sum_wcc = (weighted * c).sum(1, keepdim=True), (weight * c).mul_(c).sum(1, keepdim=True)
        best_gain, best_scale = _better(best_gain, best_scale, sum_wxc, sum_wcc)
    return best_scale


def _better(
    best_gain: torch.Tensor, best_scale: torch.Tensor, sum_wxq: torch.Tensor, sum_wqq: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per block the better of the best scale so far and the least squares of another choice of levels.

    Args:
        best_gain: what the squared error is less by than that of a scale of 0.
        best_scale: the best so far.
        sum_wxq: of weight * x * q.
        sum_wqq: of weight * q * q.
    """
    scale = sum_wxq / sum_wqq
    gain = scale * sum_wxq
    better = gain > best_gain  # NaN (an empty block) compares false
    return torch.where(better, gain, best_gain), torch.where(better, scale, best_scale)


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


def refine_scale_and_minimum(x: torch.Tensor, weight: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for weights of any size: the range that is divided begins at the best minimum so far.

    In a model's way down one column may count a million times as much as its neighbours. All sums are therefore of
    distances from the weighted means: then nothing large is taken from something nearly as large.

    Args:
        x: [blocks, n].
        weight: [blocks, n], positive.
        top: largest q.

    Returns:
        s and m, both [blocks, 1].
    """
    tries, least, reach = 13, top - 0.9, 1.8
    low, high = x.amin(1, keepdim=True).clamp_(max=0.0), x.amax(1, keepdim=True)
    sum_w = weight.sum(1, keepdim=True)
    mean_x = (weight * x).sum(1, keepdim=True) / sum_w
    weighted = weight * (x - mean_x)
    best_gain = torch.full_like(low, -torch.inf)
    best_scale, best_low = (high - low) / top, low
    q, product = torch.empty_like(x), torch.empty_like(x)
    for attempt in range(tries):
        inverse = (least + reach * attempt / (tries - 1)) / (high - best_low).clamp_(min=1e-30)
        torch.sub(x, best_low, out=q).mul_(inverse).round_().clamp_(0, top)
        mean_q = torch.mul(weight, q, out=product).sum(1, keepdim=True) / sum_w
        q.sub_(mean_q)
        sum_wxq = torch.mul(weighted, q, out=product).sum(1, keepdim=True)
        sum_wqq = torch.mul(weight, q, out=product).mul_(q).sum(1, keepdim=True)
        scale = sum_wxq / sum_wqq
        level = mean_x - scale * mean_q
        # A positive level is not representable and becomes 0.
        through_zero = (sum_wxq + sum_w * mean_x * mean_q) / (sum_wqq + sum_w * mean_q * mean_q)
        above = level > 0
        scale, level = torch.where(above, through_zero, scale), level.masked_fill_(above, 0.0)
        # What the squared error is less than with all weights at their mean.
        gain = 2 * scale * sum_wxq - scale.square() * sum_wqq - sum_w * (mean_x - scale * mean_q - level).square()
        # Where all q are the same but for rounding, the grid stays that spans the block.
        better = (gain > best_gain) & (scale > 0) & (sum_wqq > sum_w * 1e-9)
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


def fit_unit(scale: torch.Tensor, weight: torch.Tensor, lowest: int, highest: int) -> torch.Tensor:
    """The float16 of which the blocks' scales are best taken as whole multiples.

    Args:
        scale: [super-blocks, blocks].
        weight: [super-blocks, blocks], what a squared error in a scale counts.
        lowest: of the multiples.
        highest: of the multiples.

    Returns:
        float16 [super-blocks, 1]: of the two next to the exact one that which loses less.
    """
    exact = fit_scale(scale, weight, lowest, highest, tries=9)
    near, above = exact.half(), half_not_smaller(exact)

    def loss(unit: torch.Tensor) -> torch.Tensor:
        multiple = (scale * inverse_or_zero(unit.float())).round_().clamp_(lowest, highest)
        return (weight * (scale - multiple * unit.float()).square()).sum(1, keepdim=True)

    return torch.where(loss(above) < loss(near), above, near)
