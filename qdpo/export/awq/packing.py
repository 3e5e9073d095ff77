"""4-bit weights as two layouts store them: compressed-tensors' and AutoAWQ's.

A layer of shape [out, in] is cut into groups of `in` columns. A group of a row has a scale and a zero point, and a
weight is (code - zero) * scale with codes and zeros of 0 to 15. Eight of them share an int32.

| | compressed-tensors (pack-quantized) | AutoAWQ (GEMM) |
| --- | --- | --- |
| codes | weight_packed [out, in / 8] | qweight [in, out / 8] |
| zeros | weight_zero_point [out / 8, groups] | qzeros [groups, out / 8] |
| scales | weight_scale [out, groups] | scales [groups, out], float16 |
| order in an int32 | as counted | 0 2 4 6 1 3 5 7 |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

PER_WORD = 8
COUNTED = tuple(range(PER_WORD))
INTERLEAVED = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight values the i-th nibble of AutoAWQ's words holds."""

COMPRESSED_PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")
AUTOAWQ_PARTS = ("qweight", "qzeros", "scales")


@dataclass(frozen=True)
class Quantised:
    """A layer in 4 bits.

    Attributes:
        codes: [out, in], uint8 of 0 to 15.
        zeros: [out, groups], uint8 of 0 to 15.
        scales: [out, groups].
    """

    codes: torch.Tensor
    zeros: torch.Tensor
    scales: torch.Tensor

    def dequantised(self) -> torch.Tensor:
        """The weights, float32 [out, in]."""
        rows, groups = self.scales.shape
        values = self.codes.reshape(rows, groups, -1).float()
        values -= self.zeros.float().unsqueeze(-1)
        values *= self.scales.float().unsqueeze(-1)
        return values.view(self.codes.shape)


def pack(values: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """Eight values of the last dimension into an int32 each.

    Args:
        values: [rows, columns] of 0 to 15; the last word is filled with zeros.
        order: which of eight values each nibble holds, lowest nibble first.

    Returns:
        int32 [rows, columns / 8, rounded up].
    """
    padded = torch.nn.functional.pad(values.to(torch.int64), (0, -values.shape[1] % PER_WORD))
    ordered = padded.reshape(values.shape[0], -1, PER_WORD)[:, :, list(order)]
    words = (ordered << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(words < 2**31, words, words - 2**32).to(torch.int32)


def unpack(words: torch.Tensor, count: int, order: Sequence[int]) -> torch.Tensor:
    """The inverse of `pack`: uint8 [rows, count]."""
    values = torch.empty(*words.shape, PER_WORD, dtype=torch.uint8)
    for nibble, place in enumerate(order):
        values[:, :, place] = (words >> (4 * nibble)) & 15
    return values.reshape(words.shape[0], -1)[:, :count]


def from_compressed(parts: dict[str, torch.Tensor]) -> Quantised:
    """A layer from compressed-tensors' parts."""
    rows, columns = parts["weight_shape"].tolist()
    return Quantised(
        unpack(parts["weight_packed"], columns, COUNTED),
        unpack(parts["weight_zero_point"].T.contiguous(), rows, COUNTED).T,
        parts["weight_scale"],
    )


def from_autoawq(parts: dict[str, torch.Tensor]) -> Quantised:
    """A layer from AutoAWQ's parts."""
    rows = parts["scales"].shape[1]
    return Quantised(
        unpack(parts["qweight"], rows, INTERLEAVED).T,
        unpack(parts["qzeros"], rows, INTERLEAVED).T,
        parts["scales"].T,
    )


def to_autoawq(layer: Quantised) -> dict[str, torch.Tensor]:
    """A layer as AutoAWQ's parts; scales in float16, as its kernels take them."""
    return {
        "qweight": pack(layer.codes.T, INTERLEAVED),
        "qzeros": pack(layer.zeros.T, INTERLEAVED),
        "scales": layer.scales.T.to(torch.float16).contiguous(),
    }
