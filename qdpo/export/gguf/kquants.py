"""Encoders for the K-quants Q4_K, Q5_K and Q6_K, vectorised in torch, on the CPU or a GPU.

A K-quant stores super-blocks of 256 weights. Q4_K and Q5_K cut them into 8 blocks of 32 with a scale and a minimum each
(x is about s * q - m with q >= 0), Q6_K into 16 blocks of 16 with a scale (x is about s * q); the blocks' scales are
themselves integers of 6 or 8 bits times one float16 per super-block. The byte layouts are those that `gguf.quants`
decodes. The search for scales is the mathematics of llama.cpp's reference encoder (MIT, see NOTICE): try scales around
the one that spans the block, round, solve the weighted least squares for that rounding, keep the best.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

SUPER = 256
"""Weights in a super-block."""

CHUNK = 512
"""Super-blocks encoded at once on a CPU: small enough that the temporaries stay in the cache."""

GPU_CHUNK = 1 << 16

LARGEST = 1e6
"""Values above are refused: near the end of what scales in float16 can hold, and of no use in a weight."""


def _fit_scale_and_minimum(x: torch.Tensor, top: int, spread: float, tries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale s and minimum m per block such that x is about s * q - m, q in 0..top, m >= 0.

    Args:
        x: [blocks, 32].
        top: largest q.
        spread: the tried scales divide the block's range by top - spread to top + spread.
        tries: how many scales are tried.

    Returns:
        s and m, both [blocks, 1].
    """
    weight = x.square().mean(1, keepdim=True).sqrt() + x.abs()  # an error in a large weight counts more
    low = x.amin(1, keepdim=True).clamp_(max=0.0)
    span = (x.amax(1, keepdim=True) - low).clamp_(min=1e-30)
    weighted = weight * x
    sum_w, sum_wx = weight.sum(1, keepdim=True), weighted.sum(1, keepdim=True)
    best_gain = torch.full_like(low, -torch.inf)
    best_scale, best_low = span / top, low.clone()
    above_low, q, product, square = x - low, torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    for attempt in range(tries):
        inverse = (top - spread + 2 * spread * attempt / (tries - 1)) / span
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


def _times_or_zero(x: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
    """x / divisor, and 0 where the divisor is 0."""
    return x * torch.where(divisor != 0, 1 / divisor, torch.zeros_like(divisor))


def _half_not_smaller(x: torch.Tensor) -> torch.Tensor:
    """float16 of at least x's magnitude.

    A super-block's scale is often so small that float16 has few bits for it (below 6e-5). Rounded down, the largest
    block's own scale would not fit its integer any more.
    """
    half = x.half()
    too_small = half.float().abs() < x.abs()
    return (half.view(torch.int16) + too_small.to(torch.int16)).view(torch.float16)


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """float16 [n, 1] as little-endian bytes [n, 2]."""
    return x.view(torch.uint8).view(x.shape[0], 2)


def _pack_scales(scales: torch.Tensor, minimums: torch.Tensor) -> torch.Tensor:
    """8 scales and 8 minimums of 6 bits, [n, 8] each, as 12 bytes [n, 12]."""
    return torch.cat(
        [
            scales[:, :4] | ((scales[:, 4:] >> 4) << 6),
            minimums[:, :4] | ((minimums[:, 4:] >> 4) << 6),
            (scales[:, 4:] & 15) | ((minimums[:, 4:] & 15) << 4),
        ],
        dim=1,
    )


def _with_minimums(x: torch.Tensor, bits: int, spread: float, tries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What Q4_K and Q5_K share.

    Args:
        x: [n, 256].

    Returns:
        the 16 bytes of scales [n, 16], and the integers q [n, 8, 32].
    """
    n, top = x.shape[0], (1 << bits) - 1
    scale, minimum = _fit_scale_and_minimum(x.view(n * 8, 32), top, spread, tries)
    scale, minimum = scale.view(n, 8), minimum.view(n, 8)
    d, dmin = (_half_not_smaller(part.amax(1, keepdim=True) / 63) for part in (scale, minimum))
    scales = _times_or_zero(scale, d.float()).round_().clamp_(0, 63)
    minimums = _times_or_zero(minimum, dmin.float()).round_().clamp_(0, 63)
    stored_scale, stored_minimum = (d.float() * scales).unsqueeze(2), (dmin.float() * minimums).unsqueeze(2)
    q = _times_or_zero(x.view(n, 8, 32) + stored_minimum, stored_scale).round_().clamp_(0, top).to(torch.uint8)
    head = torch.cat([_bytes(d), _bytes(dmin), _pack_scales(scales.to(torch.uint8), minimums.to(torch.uint8))], dim=1)
    return head, q


def _nibbles(q: torch.Tensor) -> torch.Tensor:
    """4-bit integers [n, 8, 32] as bytes [n, 128]: block 2i in the low half of a byte, block 2i + 1 in the high."""
    pairs = q.view(-1, 4, 2, 32)
    return (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(-1, 128)


def q4_k(x: torch.Tensor) -> torch.Tensor:
    """[n, 256] -> uint8 [n, 144], 4.5 bits a weight."""
    head, q = _with_minimums(x, bits=4, spread=1.0, tries=11)
    return torch.cat([head, _nibbles(q)], dim=1)


def q5_k(x: torch.Tensor) -> torch.Tensor:
    """[n, 256] -> uint8 [n, 176], 5.5 bits a weight."""
    head, q = _with_minimums(x, bits=5, spread=0.75, tries=9)
    high = q >> 4
    fifth = high[:, 0].clone()
    for block in range(1, 8):
        fifth |= high[:, block] << block
    return torch.cat([head, fifth, _nibbles(q & 15)], dim=1)


def q6_k(x: torch.Tensor, tries: int = 9) -> torch.Tensor:
    """[n, 256] -> uint8 [n, 210], 6.5625 bits a weight."""
    n = x.shape[0]
    blocks = x.reshape(n * 16, 16)
    extreme = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))  # with its sign: the range -32..31 is lopsided
    start = torch.where(extreme != 0, -1 / extreme, torch.zeros_like(extreme))
    weighted = blocks * blocks * blocks  # weights x^2, times x
    weight = blocks * blocks
    best_gain = torch.zeros_like(extreme)
    best_scale = torch.zeros_like(extreme)
    q, product, square = torch.empty_like(blocks), torch.empty_like(blocks), torch.empty_like(blocks)
    for attempt in range(tries):
        torch.mul(blocks, start * (32 - 0.9 + 1.8 * attempt / (tries - 1)), out=q).round_().clamp_(-32, 31)
        sum_wxq = torch.mul(weighted, q, out=product).sum(1, keepdim=True)
        sum_wqq = torch.mul(torch.mul(weight, q, out=product), q, out=square).sum(1, keepdim=True)
        scale = sum_wxq / sum_wqq
        gain = scale * sum_wxq
        better = gain > best_gain  # NaN (an empty block) compares false
        best_gain = torch.where(better, gain, best_gain)
        best_scale = torch.where(better, scale, best_scale)
    scale = best_scale.view(n, 16)
    d = _half_not_smaller(scale.gather(1, scale.abs().argmax(1, keepdim=True)) / -128)
    scales = _times_or_zero(scale, d.float()).round_().clamp_(-128, 127)
    stored = (d.float() * scales).unsqueeze(2)
    levels = _times_or_zero(x.view(n, 16, 16), stored).round_().clamp_(-32, 31).add_(32).to(torch.uint8)
    levels = levels.view(n, 2, 4, 32)
    low, high = levels & 15, levels >> 4
    ql = torch.cat([low[:, :, 0] | (low[:, :, 2] << 4), low[:, :, 1] | (low[:, :, 3] << 4)], dim=2).reshape(n, 128)
    qh = high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)
    return torch.cat([ql, qh.reshape(n, 64), scales.to(torch.int8).view(torch.uint8), _bytes(d)], dim=1)


ENCODERS: dict[Type, Callable[[torch.Tensor], torch.Tensor]] = {Type.Q4_K: q4_k, Type.Q5_K: q5_k, Type.Q6_K: q6_k}


def encode(x: torch.Tensor, kind: Type, device: torch.device | None = None) -> torch.Tensor:
    """Encode a matrix.

    Args:
        x: float32 [rows, columns], columns a multiple of 256.
        kind: Q4_K, Q5_K or Q6_K.
        device: where to compute; None takes the GPU when there is one.

    Returns:
        uint8 [rows, bytes per row] on the CPU.

    Raises:
        OverflowError: values are too large.
    """
    top = max(abs(value.item()) for value in torch.aminmax(x)) if x.numel() else 0.0
    if top > LARGEST:
        raise OverflowError(f"values up to {top:.6g} do not fit {kind.name}")
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    blocks, encoder = x.reshape(-1, SUPER), ENCODERS[kind]
    encoded = torch.empty(blocks.shape[0], int(GGML_QUANT_SIZES[kind][1]), dtype=torch.uint8)

    def fill(start: int, count: int) -> None:
        encoded[start : start + count] = encoder(blocks[start : start + count].to(device)).cpu()

    if device.type == "cpu":
        _on_all_cores(fill, len(blocks))
    else:
        for start in range(0, len(blocks), GPU_CHUNK):
            fill(start, GPU_CHUNK)
    return encoded.view(x.shape[0], -1)


def _on_all_cores(fill: Callable[[int, int], None], blocks: int) -> None:
    """Encode chunks side by side, one torch thread each: splitting one small operation among cores costs more."""
    starts, threads = range(0, blocks, CHUNK), torch.get_num_threads()
    if threads == 1 or len(starts) == 1:
        for start in starts:
            fill(start, CHUNK)
        return
    with ThreadPoolExecutor(
        min(threads, len(os.sched_getaffinity(0))), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        list(pool.map(fill, starts, [CHUNK] * len(starts)))
    torch.set_num_threads(threads)
