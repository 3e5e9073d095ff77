"""Rounding to NF4, to the same bits as bitsandbytes and many times faster on a CPU.

bitsandbytes has no kernel of its own for it there and searches the nearest of the 16 values with torch's `bucketize`,
which takes nine tenths of the time. Here each scaled weight is compared with the 15 bounds between the values, a piece
that stays in the processor's cache at a time, and the bounds below it are counted: the same number.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState

PIECE = 1 << 16
"""Weights that are compared at once: their float32 values stay in the second cache of a core."""
NESTED_BLOCKSIZE = 256
"""Scales that share a scale, as bitsandbytes has it."""


def quantize(weight: torch.Tensor, blocksize: int, double_quant: bool) -> tuple[torch.Tensor, QuantState]:
    """A weight in NF4, as `bitsandbytes.functional.quantize_4bit` gives it.

    Args:
        weight: of any shape, float32, bfloat16 or float16, on a CPU or a GPU.
        blocksize: weights that share a scale, an even number.
        double_quant: round the scales to 8 bits too.

    Returns:
        two values a byte, [(weights + 1) / 2, 1]; and what gives the values back.
    """
    from bitsandbytes import functional

    if weight.device.type == "cpu" and weight.numel() >= blocksize and weight.numel() % blocksize == 0:
        packed, scales = _count_bounds(weight.detach().reshape(-1), blocksize)
        if bool(torch.isfinite(scales).all()):
            return packed, _state(weight, scales, blocksize, double_quant)
    found: tuple[torch.Tensor, QuantState] = functional.quantize_4bit(
        weight, blocksize=blocksize, compress_statistics=double_quant, quant_type="nf4"
    )
    return found


def dequantize(packed: torch.Tensor, state: QuantState) -> torch.Tensor:
    """The values of a weight in NF4, in the type that it was rounded from."""
    from bitsandbytes import functional

    values: torch.Tensor = functional.dequantize_4bit(packed, state)
    return values


def values_of_nf4() -> torch.Tensor:
    """The 16 values, ascending, float32."""
    from bitsandbytes import functional

    values: torch.Tensor = functional.get_4bit_type("nf4", device="cpu")
    return values


def _state(weight: torch.Tensor, scales: torch.Tensor, blocksize: int, double_quant: bool) -> QuantState:
    from bitsandbytes import functional

    settings: dict[str, Any] = {
        "shape": weight.shape,
        "dtype": weight.dtype,
        "blocksize": blocksize,
        "code": values_of_nf4(),
        "quant_type": "nf4",
    }
    if not double_quant:
        return functional.QuantState(absmax=scales, **settings)
    offset = scales.mean()
    rounded, state2 = functional.quantize_blockwise(scales - offset, blocksize=NESTED_BLOCKSIZE)
    return functional.QuantState(absmax=rounded, offset=offset, state2=state2, **settings)


def _count_bounds(flat: torch.Tensor, blocksize: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed values and the scales of the blocks, float32."""
    packed = torch.empty(flat.numel() // 2, dtype=torch.uint8)
    scales = torch.empty(flat.numel() // blocksize)
    values = values_of_nf4()
    bounds = ((values[:-1] + values[1:]) / 2).numpy()
    piece = max(PIECE // blocksize, 1) * blocksize
    starts = range(0, flat.numel(), piece)

    def work(part: range) -> None:
        scaled, below = torch.empty(piece), np.empty(piece, np.uint8)
        above = np.empty(piece, np.bool_)
        for start in part:
            one = flat[start : start + piece]
            size, end = one.numel(), start + one.numel()
            blocks = scaled[:size].copy_(one).view(-1, blocksize)
            scale = torch.amax(blocks.abs(), 1, out=scales[start // blocksize : end // blocksize])
            # multiplied by the inverse, and bounded below, as bitsandbytes does it: a division rounds otherwise
            blocks.mul_((1.0 / scale.clamp(min=1e-38)).unsqueeze(1))
            found, count, greater = scaled[:size].numpy(), below[:size], above[:size]
            np.greater(found, bounds[0], out=count.view(np.bool_))
            for bound in bounds[1:]:
                np.greater(found, bound, out=greater)
                np.add(count, greater.view(np.uint8), out=count)
            pairs = torch.from_numpy(count).view(torch.int16)  # the first of two values is the low byte
            packed[start // 2 : end // 2] = ((pairs << 4) | (pairs >> 8)).to(torch.uint8)

    workers = min(torch.get_num_threads(), len(starts))
    if workers == 1:
        work(starts)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, (starts[number::workers] for number in range(workers))))
    return packed.unsqueeze(1), scales
