"""Spare memory as speed: frozen weights whose dequantized form is kept, so that no pass makes it anew.

A 4-bit weight is dequantized in every forward pass, every second run of a checkpointed layer and every backward pass:
first its scales, which double quantization holds in 8 bits, then the weight. Either result can be kept; the numbers are
the same to the bit, and only time and memory change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from qdpo.engine.recompute import decoder_layers

KEPT = "qdpo_dequantized"
"""The attribute of a layer that holds its weight in 16 bits."""

SCALE_BYTES = 4 - 1
"""What an expanded scale takes beyond its 8-bit form."""


def kept_weight(module: nn.Module) -> Tensor | None:
    """The dequantized weight that is kept for a linear layer, None for none."""
    return module.__dict__.get(KEPT)


def bytes_to_keep(model: nn.Module, count: int) -> int:
    """What `keep_dequantized` takes."""
    layers = _quantized_layers(model)
    whole = sum(state.shape.numel() * state.dtype.itemsize for layer in layers[:count] for _, state in layer)
    rest = [state for layer in layers[count:] for _, state in layer if state.nested] if count else []
    return whole + sum(SCALE_BYTES * state.absmax.numel() for state in rest)


def keep_dequantized(model: nn.Module, count: int) -> int:
    """Keep the dequantized weights of the first `count` decoder layers, and the expanded scales of all others.

    Args:
        model: with 4-bit linear layers, or without.
        count: decoder layers; 0 gives all weights back, but not the scales.

    Returns:
        For how many layers that is so now.
    """
    from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise

    layers = _quantized_layers(model)
    for number, layer in enumerate(layers):
        for part, state in layer:
            if number >= count:
                part.__dict__.pop(KEPT, None)
                if count and state.nested:
                    state.absmax = (dequantize_blockwise(state.absmax, state.state2) + state.offset).float()
                    state.nested, state.state2, state.offset = False, None, None
            elif kept_weight(part) is None:
                part.__dict__[KEPT] = dequantize_4bit(part.weight, state)
    return min(count, len(layers))


def _quantized_layers(model: nn.Module) -> list[list[tuple[Any, Any]]]:
    """The 4-bit linear layers of each decoder layer that has any, with the states of their weights."""
    found = [list(_quantized(layer)) for layer in decoder_layers(model)]
    return [layer for layer in found if layer]


def _quantized(layer: nn.Module) -> Iterator[tuple[Any, Any]]:
    for part in layer.modules():
        # a PEFT layer shows the weight of the one that it wraps
        state = getattr(part._parameters.get("weight"), "quant_state", None)
        if state is not None:
            yield part, state
