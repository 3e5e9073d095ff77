"""One tensor to the bytes of a GGUF type."""

from __future__ import annotations

import gguf
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

from qdpo.errors import InputMissingError
from qdpo.export.gguf.chunks import row_chunks
from qdpo.export.gguf.fits import fit_rows
from qdpo.export.gguf.packing import pack

# Without an importance these are gguf's own encoders: llama.cpp's bytes. They choose levels by scales that are not yet
# rounded to float16, which no grid of stored scales does. Above the limit a scale or a minimum is beyond float16.
_PLAIN_LIMITS = {
    Type.Q4_0: 8 * 65504,
    Type.Q5_0: 16 * 65504,
    Type.Q8_0: 127 * 65504,
    Type.Q4_1: 65504,
    Type.Q5_1: 65504,
}


def encode(name: str, x: torch.Tensor, kind: Type, importance: torch.Tensor | None = None) -> np.ndarray:
    """The tensor as GGUF stores it, each weight rounded to the nearest level.

    Args:
        name: for messages.
        x: float32, finite.
        kind: any type of `kinds.KINDS`.
        importance: float32 [columns], the mean square of each column's input (see `imatrix`). It moves the scales of
            types below Q8_0.

    Returns:
        float32 or float16 of the same shape, or the bytes of the quantised rows.

    Raises:
        InputMissingError: the values are too large for the type.
    """
    if kind is Type.F32:
        return x.contiguous().numpy()
    if kind is Type.BF16:
        if not torch.isfinite(rounded := x.to(torch.bfloat16)).all():
            raise InputMissingError(f"{name} has values up to {x.abs().max():.6g}, too large for BF16", "export f32")
        return rounded.contiguous().view(torch.uint8).numpy()
    if kind is Type.F16:
        if (top := _largest(x)) > 65504:
            raise InputMissingError(f"{name} has values up to {top:.6g}, F16 ends at 65504", "export bf16")
        return x.half().contiguous().numpy()
    if kind in _PLAIN_LIMITS and (importance is None or kind is Type.Q8_0):
        if (top := _largest(x)) > _PLAIN_LIMITS[kind]:
            raise InputMissingError(f"{name} has values up to {top:.6g}, too large for {kind.name}", "export bf16")
        return gguf.quants.quantize(x.contiguous().numpy(), kind)
    try:
        return round_to_nearest(x, kind, importance).numpy()
    except OverflowError as error:
        raise InputMissingError(f"{name}: {error}", "export bf16 or q8_0") from error


def round_to_nearest(
    x: torch.Tensor, kind: Type, importance: torch.Tensor | None = None, device: torch.device | None = None
) -> torch.Tensor:
    """Fit the grid of each few rows, take the nearest levels and pack them while all is in the cache.

    Args:
        x: float32 [rows, columns], columns a multiple of the type's super-block.
        kind: any of `grids.LAYOUTS`.
        importance: float32 [columns] or None.
        device: where to compute; None takes the GPU when there is one.

    Returns:
        uint8 [rows, bytes per row] on the CPU.

    Raises:
        OverflowError: values are too large for the type.
    """
    block, size = (int(part) for part in GGML_QUANT_SIZES[kind])
    encoded = torch.empty(x.shape[0], x.shape[1] // block * size, dtype=torch.uint8)

    def encode_chunk(start: int, rows: torch.Tensor) -> None:
        grid = fit_rows(rows, kind, importance)
        encoded[start : start + len(rows)] = pack(grid, grid.levels(rows)).cpu()

    row_chunks(encode_chunk, x, device)
    return encoded


def _largest(x: torch.Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0


def decode(stored: np.ndarray, kind: Type, shape: tuple[int, ...]) -> torch.Tensor:
    """The float32 values of a stored tensor, [rows, columns] as in torch."""
    values = stored.astype(np.float32) if kind in (Type.F32, Type.F16) else gguf.quants.dequantize(stored, kind)
    return torch.from_numpy(np.ascontiguousarray(values)).reshape(shape)
