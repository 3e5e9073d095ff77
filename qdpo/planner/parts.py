"""Bytes of what stays for the whole run: weights, adapter, gradients, optimizer state."""

from __future__ import annotations

import math

from qdpo.config.schema import RunConfig
from qdpo.planner.shapes import Shape

BLOCK = 64
"""Weights that share an NF4 scale (bitsandbytes)."""

NESTED_BLOCK = 256
"""Scales that share a scale of their own under double quantization."""

CODE = (16 + 256) * 4
"""Bytes of the code books that every 4-bit layer brings."""

LORA = 4
"""Bytes of an adapter weight and of its gradient: fp32, whatever the base computes in."""


def weight_parts(shape: Shape, quantization: str, double_quant: bool, b: int) -> dict[str, float]:
    """Bytes of the frozen weights by part.

    Args:
        shape: the model's.
        quantization: `nf4` or `none`.
        double_quant: the scales are quantized too.
        b: bytes of what is not quantized.
    """
    rest = {"embedding, head, norms": float(shape.unquantized * b)}
    if quantization == "none":
        return {"linear weights": float(shape.linear * b), **rest}
    blocks = shape.linear / BLOCK
    books = CODE * len(shape.projections) * shape.layers
    parts = {"NF4 weights": shape.linear / 2}
    if double_quant:
        parts["NF4 scales (8 bit)"] = blocks
        parts["scales of the scales"] = 4 * blocks / NESTED_BLOCK + books
    else:
        parts["NF4 scales (fp32)"] = 4 * blocks + books / 17  # without the larger of the two books
    return {**parts, **rest}


def optimizer_bytes(optim: str, weights: int) -> float:
    """Bytes of both Adam states.

    Args:
        optim: transformers' name of the optimizer.
        weights: trained weights.
    """
    return weights * (2 + 2 * 4 / NESTED_BLOCK) if "8bit" in optim else 8.0 * weights


def step_temporaries(optim: str, weights: int) -> float:
    """Bytes that a step takes for a moment: torch's Adam works on all weights at once, bitsandbytes' in place."""
    return 8.0 * weights if optim == "adamw_torch" else 0.0


def is_paged(optim: str) -> bool:
    """Whether the optimizer's state may leave the card for the host's memory."""
    return optim.startswith("paged")


def adapter_weights(shape: Shape, config: RunConfig) -> int:
    """Trained weights of a run."""
    return shape.lora(config.lora.r, list(config.lora.target_modules))


def adapter_casts(config: RunConfig, weights: int, b: int) -> float:
    """Bytes of the adapter's weights in half precision, which fused functions take, see `qdpo.engine.casts`."""
    fused = config.packing.fused_lora or config.packing.fused_mlp
    return float(b * weights) if fused and b < LORA else 0.0


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


def host_loading(shape: Shape, quantization: str, b: int, *, cpu: bool) -> dict[str, float]:
    """Peak of the host's memory while the base is loaded, above the libraries' own; the files' pages do not count.

    The loader takes one tensor after the other from the mapped files, so the 16-bit model is never there as a whole.

    Args:
        shape: the model's.
        quantization: `nf4` or `none`.
        b: bytes of a weight in the compute type.
        cpu: the model stays in the host's memory.
    """
    largest = max(shape.largest_linear, shape.embedding)
    if not cpu:
        # one tensor on its way, once as it is stored and once in the compute type
        return {"one tensor on its way to the card": float(largest * 2 * b)}
    parts = {f"model: {name}": size for name, size in weight_parts(shape, quantization, True, b).items()}
    if quantization == "nf4":
        # fp32 copies, indices and codes, as bitsandbytes' CPU quantizer has them side by side
        parts["one layer being quantized"] = 11.0 * shape.largest_linear
    return parts


def memory_of_merge(shape: Shape) -> float:
    """Peak of the host's memory of `qdpo merge-export`: a few fp32 copies of the largest tensor; no GPU memory."""
    return 4.0 * 4 * max(math.prod(part) for part in (*shape.projections.values(), (shape.vocab, shape.hidden)))
