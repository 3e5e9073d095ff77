"""Levels to the bytes of a GGUF type, in the layouts that `gguf.quants` decodes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from gguf import GGMLQuantizationType as Type

from qdpo.model.grids import Grid


def pack(grid: Grid, q: torch.Tensor) -> torch.Tensor:
    """The bytes of a matrix.

    Args:
        grid: of the matrix.
        q: uint8 [rows, columns], a level for each weight.

    Returns:
        uint8 [rows, bytes per row], where q is.
    """
    return _PACKERS[grid.kind](_Blocks(grid, q)).view(q.shape[0], -1)


class _Blocks:
    """The super-blocks of a matrix, n of them, whatever row they stand in.

    Attributes:
        q: uint8 [n, weights].
        d: bytes [n, 2].
    """

    def __init__(self, grid: Grid, q: torch.Tensor) -> None:
        self._grid = grid
        self.q = q.reshape(grid.d.numel(), -1)
        self.d = _bytes(grid.d)

    @property
    def dmin(self) -> torch.Tensor:
        """Bytes [n, 2]."""
        return _bytes(_there(self._grid.dmin))

    @property
    def scales(self) -> torch.Tensor:
        """Integers [n, blocks]."""
        return _there(self._grid.scales).reshape(len(self.q), -1)

    @property
    def minimums(self) -> torch.Tensor:
        """Integers [n, blocks]."""
        return _there(self._grid.minimums).reshape(len(self.q), -1)


def _there(part: torch.Tensor | None) -> torch.Tensor:
    assert part is not None
    return part


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """float16 as little-endian bytes [n, 2]."""
    return x.contiguous().view(torch.uint8).view(-1, 2)


def _halves(q: torch.Tensor) -> torch.Tensor:
    """4-bit integers [n, 32 a] as bytes [n, 16 a]: the first 16 of every 32 in the low half of a byte."""
    pairs = q.view(len(q), -1, 2, 16)
    return (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(len(q), -1)


def _bits(q: torch.Tensor) -> torch.Tensor:
    """0 or 1 [n, 8 a] as bytes [n, a], the first in the lowest bit."""
    eights = q.view(len(q), -1, 8)
    whole = eights[:, :, 0].clone()
    for bit in range(1, 8):
        whole |= eights[:, :, bit] << bit
    return whole


def _q4_0(b: _Blocks) -> torch.Tensor:
    return torch.cat([b.d, _halves(b.q)], dim=1)


def _q4_1(b: _Blocks) -> torch.Tensor:
    return torch.cat([b.d, b.dmin, _halves(b.q)], dim=1)


def _q5_0(b: _Blocks) -> torch.Tensor:
    return torch.cat([b.d, _bits(b.q >> 4), _halves(b.q & 15)], dim=1)


def _q5_1(b: _Blocks) -> torch.Tensor:
    return torch.cat([b.d, b.dmin, _bits(b.q >> 4), _halves(b.q & 15)], dim=1)


def _q8_0(b: _Blocks) -> torch.Tensor:
    return torch.cat([b.d, b.q ^ 128], dim=1)  # level - 128 as int8


def _six_bits(b: _Blocks) -> torch.Tensor:
    """8 scales and 8 minimums of 6 bits as 12 bytes [n, 12]."""
    scales, minimums = b.scales, b.minimums
    return torch.cat(
        [
            scales[:, :4] | ((scales[:, 4:] >> 4) << 6),
            minimums[:, :4] | ((minimums[:, 4:] >> 4) << 6),
            (scales[:, 4:] & 15) | ((minimums[:, 4:] & 15) << 4),
        ],
        dim=1,
    )


def _nibbles(q: torch.Tensor) -> torch.Tensor:
    """4-bit integers [n, 256] as bytes [n, 128]: block 2i of 32 in the low half of a byte, block 2i + 1 in the high."""
    pairs = q.view(-1, 4, 2, 32)
    return (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(-1, 128)


def _planes(bits: torch.Tensor) -> torch.Tensor:
    """0 or 1 [n, 256] as bytes [n, 32]: bit i of a byte is of block i of 32."""
    blocks = bits.view(-1, 8, 32)
    whole = blocks[:, 0].clone()
    for block in range(1, 8):
        whole |= blocks[:, block] << block
    return whole


def _q4_k(b: _Blocks) -> torch.Tensor:
    return torch.cat([b.d, b.dmin, _six_bits(b), _nibbles(b.q)], dim=1)


def _q5_k(b: _Blocks) -> torch.Tensor:
    return torch.cat([b.d, b.dmin, _six_bits(b), _planes(b.q >> 4), _nibbles(b.q & 15)], dim=1)


def _pairs(q: torch.Tensor) -> torch.Tensor:
    """2-bit integers [n, 256] as bytes [n, 64]: of each half the four blocks of 32 in a byte's pairs of bits."""
    blocks = q.view(-1, 2, 4, 32)
    return (blocks[:, :, 0] | (blocks[:, :, 1] << 2) | (blocks[:, :, 2] << 4) | (blocks[:, :, 3] << 6)).reshape(-1, 64)


def _q6_k(b: _Blocks) -> torch.Tensor:
    low = (b.q & 15).view(-1, 2, 4, 32)
    ql = torch.cat([low[:, :, 0] | (low[:, :, 2] << 4), low[:, :, 1] | (low[:, :, 3] << 4)], dim=2).reshape(-1, 128)
    return torch.cat([ql, _pairs(b.q >> 4), b.scales.view(torch.uint8), b.d], dim=1)


def _q2_k(b: _Blocks) -> torch.Tensor:
    return torch.cat([b.scales | (b.minimums << 4), _pairs(b.q), b.d, b.dmin], dim=1)


def _q3_k(b: _Blocks) -> torch.Tensor:
    scales = (b.scales + 32).view(torch.uint8)
    fours = (scales >> 4).view(-1, 4, 4)
    high = fours[:, 0] | (fours[:, 1] << 2) | (fours[:, 2] << 4) | (fours[:, 3] << 6)
    low = (scales[:, :8] & 15) | ((scales[:, 8:] & 15) << 4)
    return torch.cat([_planes(b.q >> 2), _pairs(b.q & 3), low, high, b.d], dim=1)


def _iq4_xs(b: _Blocks) -> torch.Tensor:
    scales = (b.scales + 32).view(torch.uint8)
    twos, fours = (scales & 15).view(-1, 4, 2), (scales >> 4).view(-1, 2, 4)
    high = fours[:, :, 0] | (fours[:, :, 1] << 2) | (fours[:, :, 2] << 4) | (fours[:, :, 3] << 6)
    return torch.cat([b.d, high, twos[:, :, 0] | (twos[:, :, 1] << 4), _halves(b.q)], dim=1)


_PACKERS: dict[Type, Callable[[_Blocks], torch.Tensor]] = {
    Type.Q4_0: _q4_0,
    Type.Q4_1: _q4_1,
    Type.Q5_0: _q5_0,
    Type.Q5_1: _q5_1,
    Type.Q8_0: _q8_0,
    Type.IQ4_NL: _q4_0,
    Type.IQ4_XS: _iq4_xs,
    Type.Q2_K: _q2_k,
    Type.Q3_K: _q3_k,
    Type.Q4_K: _q4_k,
    Type.Q5_K: _q5_k,
    Type.Q6_K: _q6_k,
}
