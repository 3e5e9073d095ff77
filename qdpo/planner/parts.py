"""Bytes of weights and adapter: on the card for the whole run, in the host's memory while loading, on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qdpo.config.schema import RunConfig
from qdpo.model.stream_memory import PROCESS_BYTES, Sizes, verification_memory
from qdpo.planner.optimizer import optimizer_bytes
from qdpo.planner.shapes import Shape

BLOCK = 64
"""Weights that share an NF4 scale (bitsandbytes)."""

ADAPTER, CASTS = "LoRA weights (fp32)", "LoRA weights (half precision)"
GRADIENTS, STATE, KEPT = "gradients", "optimizer state", "weights kept dequantized"
ON_GRID = "weights on their grid"
"""Parts of a run's memory."""

LORA = 4
"""Bytes of an adapter weight and of its gradient: fp32, whatever the base computes in."""

STORED = 2
"""Bytes of a weight of a published base, and of a merged model (16 bit)."""

SMALL_FILES = 5e6
"""Tokenizer, metrics, plots, card and reports of a run."""


def adapter_weights(shape: Shape, config: RunConfig) -> int:
    """Trained weights of a run."""
    return shape.lora(config.lora.r, config.lora.target_modules)


def checkpointed_layers(shape: Shape, config: RunConfig) -> int:
    """Layers that are computed twice, see `qdpo.engine.recompute`; `auto` begins with the most."""
    if not config.train.gradient_checkpointing:
        return 0
    wanted = config.packing.checkpoint_layers
    return max(shape.layers - 1, 0) if wanted == "auto" else min(wanted, shape.layers)


def kept_layers(shape: Shape, config: RunConfig) -> int:
    """Layers whose weights are kept dequantized, see `qdpo.engine.kept`; `auto` begins with none."""
    wanted = config.packing.keep_dequantized
    return 0 if wanted == "auto" or config.model.quantization != "nf4" else min(wanted, shape.layers)


def kept_bytes(shape: Shape, config: RunConfig, b: int) -> float:
    """What keeping them takes: their weights in the compute type, and the expanded scales of all other layers."""
    count = kept_layers(shape, config)
    rest = shape.linear * (1 - count / shape.layers) if count and config.model.double_quant else 0.0
    return shape.linear * b * count / shape.layers + rest / BLOCK * (4 - 1)


def grid_bytes(shape: Shape, config: RunConfig, b: int, *, cpu: bool) -> float:
    """What `train.grid` takes: the grids, and rounded weights in the compute type: all on a CPU, else one at a time."""
    if config.train.grid is None:
        return 0.0
    # Q4_K's scales and minimums, a byte each here, and their two units: 20 bytes for 256 weights; most types have less
    return shape.linear * 20 / 256 + b * (shape.linear if cpu else shape.largest_linear)


def host_loading(shape: Shape, static: Mapping[str, int], quantization: str, b: int, *, cpu: bool) -> dict[str, float]:
    """Peak of the host's memory while the base is loaded, above the libraries' own; the files' pages do not count.

    The loader takes one tensor after the other from the mapped files, so the 16-bit model is never there as a whole.

    Args:
        shape: the model's.
        static: bytes of base and adapter by part.
        quantization: `nf4` or `none`.
        b: bytes of a weight in the compute type.
        cpu: the model stays in the host's memory.
    """
    largest = max(shape.largest_linear, shape.embedding)
    if not cpu:
        # one tensor on its way, once as it is stored and once in the compute type
        return {"one tensor on its way to the card": float(largest * 2 * b)}
    parts = {f"model: {name}": float(size) for name, size in static.items() if name != ADAPTER}
    if quantization == "nf4":
        # fp32 copies, indices and codes, as bitsandbytes' CPU quantizer has them side by side
        parts["one layer being quantized"] = 11.0 * shape.largest_linear
    return parts


def memory_of_merge(shape: Shape) -> float:
    """Peak of the host's memory of `qdpo merge-export`: a few fp32 copies of the largest tensor; no GPU memory."""
    return 4.0 * 4 * max(shape.largest_linear, shape.embedding)


def memory_of_verify(shape: Shape, b: int, *, cpu: bool) -> float:
    """Peak of the host's memory of `qdpo verify`, above the libraries' own."""
    layer = max(sum(rows * columns for rows, columns in parts.values()) for parts in shape.matrices)
    sizes = Sizes(layer, shape.largest_linear, shape.embedding, shape.parameters)
    return float(verification_memory(sizes, b, on_card=not cpu) - PROCESS_BYTES)


@dataclass(frozen=True)
class Disk:
    """Bytes on the disk by purpose.

    Attributes:
        download: the base.
        checkpoints: those that are kept, and the one being written.
        run: the rest of the run directory.
        merged: the merged model in 16 bits.
    """

    download: float
    checkpoints: float
    run: float
    merged: float

    @property
    def training(self) -> float:
        """What training needs."""
        return self.download + self.checkpoints + self.run


def disk(shape: Shape, config: RunConfig, stored: int | None = None) -> Disk:
    """Estimate what a run and its export take; `stored` are the bytes of the base's weight files, where known."""
    trained = adapter_weights(shape, config)
    adapter = float(LORA * trained)
    one = adapter + optimizer_bytes(config.train.optim, trained)
    published = float(STORED * shape.parameters)
    download = published if stored is None else float(stored)
    return Disk(download, (config.train.keep + 1) * one, adapter + SMALL_FILES, published)
