"""The grids on which GGUF types place weights.

A quantised type cuts every row into blocks and gives each a grid: the values scale * q + low for the levels q in
0..top, or scale * codebook[q]. Finding the grid (`export.gguf.fits.fit`), choosing levels on it (`Grid.levels`, or
column by column with `Grid.by_column`) and writing the bytes (`export.gguf.packing.pack`) are three separate steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch
from gguf import GGMLQuantizationType as Type

IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The levels of IQ4_NL and IQ4_XS, closer together near 0."""


@dataclass(frozen=True)
class Layout:
    """What all grids of a type share.

    Attributes:
        block: weights that share a scale.
        blocks: blocks in a super-block, whose scales are small integers times one float16; 1 where each is float16.
        top: the largest level.
        largest: the largest integer scale, of either sign in types without minimums.
        zero: the level of the value 0 in a type without minimums, else 0.
        codebook: whether the values of the levels in units of the scale are those of `IQ4`, not evenly spaced.
    """

    block: int
    blocks: int
    top: int
    largest: int = 0
    zero: int = 0
    codebook: bool = False


LAYOUTS = {
    Type.Q4_0: Layout(32, 1, 15, zero=8),
    Type.Q4_1: Layout(32, 1, 15),
    Type.Q5_0: Layout(32, 1, 31, zero=16),
    Type.Q5_1: Layout(32, 1, 31),
    Type.Q8_0: Layout(32, 1, 255, zero=128),
    Type.IQ4_NL: Layout(32, 1, 15, codebook=True),
    Type.IQ4_XS: Layout(32, 8, 15, 32, codebook=True),
    Type.Q2_K: Layout(16, 16, 3, 15),
    Type.Q3_K: Layout(16, 16, 7, 32, zero=4),
    Type.Q4_K: Layout(32, 8, 15, 63),
    Type.Q5_K: Layout(32, 8, 31, 63),
    Type.Q6_K: Layout(16, 16, 63, 128, zero=32),
}


STORED = ("d", "scales", "dmin", "minimums")
"""What a file has of a `Grid`, from which the rest follows."""


@dataclass(frozen=True)
class Grid:
    """The grid of a matrix [rows, columns], on the device on which it was fitted.

    Attributes:
        kind: the GGUF type.
        scale: float32 [rows, blocks], may be negative or 0.
        low: float32 [rows, blocks], the value of level 0; zeros for a codebook.
        d: float16 [rows, super-blocks]: the unit of the integer scales, or the scale itself.
        scales: integers [rows, blocks], or None where d is the scale.
        dmin: float16 [rows, super-blocks]: the unit of the integer minimums, or the value of level 0; None without any.
        minimums: integers [rows, blocks] or None.
    """

    kind: Type
    scale: torch.Tensor
    low: torch.Tensor
    d: torch.Tensor
    scales: torch.Tensor | None = None
    dmin: torch.Tensor | None = None
    minimums: torch.Tensor | None = None

    @classmethod
    def of_stored(
        cls,
        kind: Type,
        d: torch.Tensor,
        scales: torch.Tensor | None = None,
        dmin: torch.Tensor | None = None,
        minimums: torch.Tensor | None = None,
    ) -> Grid:
        """The grid that a reader of a file makes of what is stored there, see the attributes."""
        layout, scale = LAYOUTS[kind], d.float()
        if scales is not None:
            scale = _times(scale, scales, layout.blocks)
        if dmin is None:
            low = -layout.zero * scale
        else:
            low = dmin.float() if minimums is None else -_times(dmin.float(), minimums, layout.blocks)
        return cls(kind, scale, low, d, scales, dmin, minimums)

    @property
    def layout(self) -> Layout:
        """What all grids of the type share."""
        return LAYOUTS[self.kind]

    def to(self, device: torch.device) -> Grid:
        """The same on a device."""
        return self._with({name: part.to(device) for name, part in self._tensors().items()})

    def stored(self) -> dict[str, torch.Tensor]:
        """What `of_stored` takes, by name."""
        return {name: part for name, part in self._tensors().items() if name in STORED}

    def rows(self, chosen: Callable[[torch.Tensor], torch.Tensor]) -> Grid:
        """The grid of a matrix some of whose rows were taken, or put into another order.

        Args:
            chosen: does it to any tensor [rows, ...].
        """
        return self._with({name: chosen(part) for name, part in self._tensors().items()})

    def _with(self, parts: dict[str, Any]) -> Grid:
        return replace(self, **parts)

    def _tensors(self) -> dict[str, torch.Tensor]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in found.items() if isinstance(part, torch.Tensor)}

    def moved(self, base: torch.Tensor, change: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
        """What a change does to weights that stand on the grid: those whose threshold it passes go to another level.

        With thresholds that are even between -1/2 and 1/2 the change is kept on average, however small it is. Levels
        must be evenly spaced.

        Args:
            base: float32 [rows, columns], taken to its nearest levels.
            change: likewise.
            thresholds: likewise, how far in steps each weight is taken to stand from its level.

        Returns:
            the values, float32 [rows, columns].
        """
        layout, scale, low = self.layout, self.scale.unsqueeze(2), self.low.unsqueeze(2)
        inverse = inverse_or_zero(scale)
        blocks = (*self.scale.shape, -1)
        levels = _nearest(layout, base.reshape(blocks), inverse, low)
        # rounded before the level is added: a change may be a ten-thousandth of a step
        levels += (change.reshape(blocks) * inverse).add_(thresholds.reshape(blocks)).round_()
        return _values(layout, levels.clamp_(0, layout.top), scale, low).view(base.shape)

    def nearest(self, x: torch.Tensor) -> torch.Tensor:
        """The nearest value to each weight, float32 [rows, columns]."""
        scale, low = self.scale.unsqueeze(2), self.low.unsqueeze(2)
        levels = _nearest(self.layout, x.reshape(*self.scale.shape, -1), inverse_or_zero(scale), low)
        return _values(self.layout, levels, scale, low).view(x.shape)

    def levels(self, x: torch.Tensor) -> torch.Tensor:
        """The nearest level of each weight: float32 [rows, columns] -> uint8 [rows, columns]."""
        inverse, low = inverse_or_zero(self.scale).unsqueeze(2), self.low.unsqueeze(2)
        return _nearest(self.layout, x.reshape(*self.scale.shape, -1), inverse, low).to(torch.uint8).view(x.shape)

    def values(self, q: torch.Tensor) -> torch.Tensor:
        """What a reader of the file gets: uint8 [rows, columns] -> float32 [rows, columns]."""
        levels = q.reshape(*self.scale.shape, -1)
        return _values(self.layout, levels, self.scale.unsqueeze(2), self.low.unsqueeze(2)).view(q.shape)

    def by_column(self) -> Columns:
        """For rounding one column after another."""
        scale = self.scale.T.contiguous()
        return Columns(self.layout, scale, self.low.T.contiguous(), inverse_or_zero(scale))


@dataclass(frozen=True)
class Columns:
    """A grid from which a column of all rows is rounded at once.

    Attributes:
        layout: of the type.
        scale: [blocks, rows].
        low: [blocks, rows].
        inverse: 1 / scale, 0 where the scale is 0.
    """

    layout: Layout
    scale: torch.Tensor
    low: torch.Tensor
    inverse: torch.Tensor

    def round(self, column: int, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The level of `column` nearest to the target, and its value.

        Args:
            column: its number in the matrix.
            target: float32 [rows].

        Returns:
            the levels as float32 [rows], whole numbers, and the values, float32 [rows].
        """
        block = column // self.layout.block
        level = _nearest(self.layout, target, self.inverse[block], self.low[block])
        return level, _values(self.layout, level, self.scale[block], self.low[block])


def joined(grids: Sequence[Grid]) -> Grid:
    """One grid of matrices that stand below each other."""
    first = grids[0]
    return first._with({name: torch.cat([getattr(grid, name) for grid in grids]) for name in first._tensors()})


def _times(unit: torch.Tensor, count: torch.Tensor, blocks: int) -> torch.Tensor:
    """Integers [rows, blocks] times their super-blocks' units [rows, super-blocks]."""
    return (unit.unsqueeze(2) * count.view(*unit.shape, blocks)).view(count.shape)


def inverse_or_zero(x: torch.Tensor) -> torch.Tensor:
    """1 / x, and 0 where x is 0."""
    return torch.where(x != 0, 1 / x, torch.zeros_like(x))


@dataclass(frozen=True)
class Codebook:
    """Levels that are not evenly spaced, on a device.

    Attributes:
        values: float32, of each level.
        levels: int32: for each half-integer from the first value to the last the level nearest to it. Half-way points
            between whole numbers are multiples of 1/2; of two equally near levels it is the upper one.
        rounded: float32, the values of `levels`.
    """

    values: torch.Tensor
    levels: torch.Tensor
    rounded: torch.Tensor

    def nearest(self, x: torch.Tensor) -> torch.Tensor:
        """The nearest level of each x, int32."""
        return self.levels.index_select(0, self._places(x)).view(x.shape)

    def round(self, x: torch.Tensor) -> torch.Tensor:
        """The nearest value to each x."""
        return self.rounded.index_select(0, self._places(x)).view(x.shape)

    def _places(self, x: torch.Tensor) -> torch.Tensor:
        first, last = 2 * IQ4[0], 2 * IQ4[-1]
        return (x * 2).floor_().clamp_(first, last).sub_(first).to(torch.int32).view(-1)


@cache
def codebook(device: torch.device) -> Codebook:
    """That of IQ4_NL and IQ4_XS."""
    values = torch.tensor(IQ4, dtype=torch.float32)
    halves = torch.arange(2 * IQ4[0], 2 * IQ4[-1] + 1) / 2
    levels = torch.bucketize(halves, (values[1:] + values[:-1]) / 2, right=True, out_int32=True)
    return Codebook(values.to(device), levels.to(device), values[levels].to(device))


def _nearest(layout: Layout, x: torch.Tensor, inverse: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """The nearest levels, as float32 or int32."""
    if layout.codebook:
        return codebook(x.device).nearest(x * inverse)
    if layout.zero:
        return (x * inverse).round_().clamp_(-layout.zero, layout.top - layout.zero).add_(layout.zero)
    return ((x - low) * inverse).round_().clamp_(0, layout.top)


def _values(layout: Layout, q: torch.Tensor, scale: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    if layout.codebook:
        return scale * codebook(q.device).values.index_select(0, q.to(torch.int32).view(-1)).view(q.shape)
    levels = q.to(torch.float32)
    return scale * (levels - layout.zero) if layout.zero else scale * levels + low
