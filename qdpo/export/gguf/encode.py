"""One tensor to the bytes of a GGUF type."""

from __future__ import annotations

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

from qdpo.errors import InputMissingError
from qdpo.export.gguf import kquants


def encode(name: str, x: torch.Tensor, kind: Type) -> np.ndarray:
    """The tensor as GGUF stores it.

    Args:
        name: for messages.
        x: float32, finite.
        kind: any type of `kinds.KINDS`.

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
    if kind in kquants.ENCODERS:
        try:
            return kquants.encode(x, kind).numpy()
        except OverflowError as error:
            raise InputMissingError(f"{name}: {error}", "export bf16 or q8_0") from error
    top = x.abs().max().item() if x.numel() else 0.0
    if kind is Type.F16:
        if top > 65504:
            raise InputMissingError(f"{name} has values up to {top:.6g}, F16 ends at 65504", "export bf16")
        return x.half().contiguous().numpy()
    if top > 65504 * 8:  # block scales are float16; the smallest divisor of a block's range is 8 (Q4_0)
        raise InputMissingError(f"{name} has values up to {top:.6g}, too large for {kind.name}", "export bf16")
    return gguf.quants.quantize(x.contiguous().numpy(), kind)


def decode(stored: np.ndarray, kind: Type, shape: tuple[int, ...]) -> torch.Tensor:
    """The float32 values of a stored tensor, [rows, columns] as in torch."""
    values = stored.astype(np.float32) if kind in (Type.F32, Type.F16) else gguf.quants.dequantize(stored, kind)
    return torch.from_numpy(np.ascontiguousarray(values)).reshape(shape)
