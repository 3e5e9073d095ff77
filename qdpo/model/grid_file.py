"""The grids that a run was trained on (`train.grid`), stored beside its adapter, and what stands on them.

With them the trained model is not B + D, base and adapter's change, but what a GGUF file can hold: every weight of Q(B)
is a level, and D moves a weight to another level where it passes the weight's threshold. Thresholds are even between
half a step down and half a step up, and fixed: they follow from the weight's place alone. So a change is kept on
average however small it is, which it is not where a base of 16 values a block is rounded anew: there all weights of one
value stand at the same place between two levels, and a small change moves none of them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path

import torch
from gguf import GGMLQuantizationType as Type
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qdpo.errors import InputMissingError
from qdpo.files import atomic_write
from qdpo.model.grids import STORED, Grid

GRIDS = "grids.safetensors"

_KEY = "qdpo"

ROWS = 1 << 20
"""Weights that are rounded at once, so that what lies between takes little memory."""


class Grids:
    """The grids of a model's matrices, read when they are asked for.

    Args:
        path: written by `save_grids`.

    Raises:
        InputMissingError: it is not there, or damaged.

    Attributes:
        kind: the GGUF type of the file, such as `q4_k_m`, whose tensors have several.
        types: tensor -> its type.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, "pt") as file:
                found = json.loads((file.metadata() or {})[_KEY])
            self.kind = str(found["kind"])
            self.types = {str(name): Type[kind] for name, kind in found["types"].items()}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputMissingError(
                f"{path} holds no grids: {error!r}", "restore it: the adapter is of no use without"
            ) from error

    def of(self, name: str) -> Grid | None:
        """The grid of a tensor by its name in the model, on the CPU; None where it is not rounded.

        Raises:
            InputMissingError: the file is damaged.
        """
        kind = self.types.get(name)
        if kind is None:
            return None
        try:
            with safe_open(self.path, "pt") as file:
                there = set(file.keys())
                parts = {part: file.get_tensor(f"{name}.{part}") for part in STORED if f"{name}.{part}" in there}
        except (OSError, SafetensorError) as error:
            raise InputMissingError(f"{self.path}: {name}: {error}", "restore the file") from error
        return Grid.of_stored(kind, **parts)


def placed(
    name: str, grid: Grid, base: Tensor, adapter: tuple[Tensor, Tensor, float] | None, dtype: torch.dtype
) -> Tensor:
    """Q(B), or Q(B) moved by the adapter's D, a few rows at a time: [rows, columns] in a type.

    Args:
        name: of the tensor: thresholds of different tensors are independent.
        grid: of the tensor, on the device of the others.
        base: [rows, columns].
        adapter: A [r, columns], B [rows, r] and their scale; None without one.
        dtype: of the result.
    """
    rows, columns = base.shape
    height = max(1, ROWS // max(columns, 1))
    result = torch.empty(rows, columns, dtype=dtype, device=base.device)
    for start in range(0, rows, height):
        part = slice(start, min(start + height, rows))
        own, values = grid.rows(itemgetter(part)), base[part].float()
        if adapter is None:
            result[part] = own.nearest(values)
        else:
            a, b, scale = adapter
            change = (b[part].float() @ a.float()).mul_(scale)
            result[part] = own.moved(values, change, thresholds(name, part, columns, base.device))
    return result


def thresholds(name: str, rows: slice, columns: int, device: torch.device) -> Tensor:
    """Numbers between -1/2 and 1/2 that follow from a weight's place, the same on every device: [rows, columns].

    The last step of MurmurHash3 (Austin Appleby, public domain) makes them of the place's number.
    """
    x = torch.arange(rows.start * columns, rows.stop * columns, device=device, dtype=torch.int32)
    x += zlib.crc32(name.encode()) & 0x3FFFFFFF
    for shift, factor in ((16, -2048144789), (13, -1028477387), (16, None)):
        x ^= (x >> shift) & ((1 << 32 - shift) - 1)  # a shift of int32 repeats the sign
        if factor is not None:
            x *= factor
    return (x.float() * 2**-32).view(-1, columns)


def save_grids(path: Path, kind: str, grids: Iterable[tuple[str, Grid]]) -> None:
    """Write the grids of a model's tensors.

    Args:
        path: the file.
        kind: the GGUF type of a file on them.
        grids: tensor and grid.

    Raises:
        DiskError, OutputError: it cannot be written.
    """
    types: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, grid in grids:
        types[name] = grid.kind.name
        tensors |= {f"{name}.{part}": value.cpu().contiguous() for part, value in grid.stored().items()}
    atomic_write(path, save(tensors, {_KEY: json.dumps({"kind": kind, "types": types})}))
