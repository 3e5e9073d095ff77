"""What the written answers of an evaluation cost: time and memory of decoding a batch of prompts (training/samples.py).

A decoded token reads all weights for a few rows, so bandwidth and launches decide, and the number of prompts hardly
does. A 4-bit layer is read as it is stored where bitsandbytes has its own product for that, else dequantized.
"""

from __future__ import annotations

from dataclasses import dataclass

from qdpo.config.schema import RunConfig
from qdpo.planner.parts import adapter_weights
from qdpo.planner.shapes import Shape

FUSED_ROWS = 4
"""Rows up to which bitsandbytes reads 4-bit weights as they are stored, on every card (`_GEMM_4BIT_CUSTOM_FLOOR_M` in
its backends/cuda/ops.py). Above, its rule depends on the card, and a plan counts them as dequantized."""

STORED = 0.5 + 1 / 64
"""Bytes of a 4-bit weight with its share of the scale."""

CPU_DEQUANTIZING = 25.0
"""Bytes that could be moved while a CPU dequantizes one weight, at the 10 GB/s and core that cards.py guesses: 4096 x
4096 weights took 32 to 54 ms in one thread (`bitsandbytes.functional.dequantize_4bit`, bf16 and fp32)."""

CACHE_PASSES = 3
"""How often a token moves the cache: transformers' DynamicCache reads and writes it to append, attention reads it."""


@dataclass(frozen=True)
class Answering:
    """The answers of one model (base or policy) to all prompts of one evaluation.

    Attributes:
        seconds: on the device.
        peak: bytes at the highest point, above weights and adapter.
        cache: bytes of keys and values at the end, which are part of the peak.
    """

    seconds: float
    peak: float
    cache: float


@dataclass(frozen=True)
class Speed:
    """What a device reaches.

    Attributes:
        flops: operations a second of products.
        bandwidth: bytes a second of copies.
        launch: seconds to launch one layer's kernels.
    """

    flops: float
    bandwidth: float
    launch: float


ANY_SPEED = Speed(1.0, 1.0, 0.0)
"""For whoever asks for memory only."""


def answers(
    shape: Shape, config: RunConfig, b: int, *, cpu: bool, adapter: bool, speed: Speed = ANY_SPEED
) -> Answering:
    """What a run's prompts take, answered once.

    Args:
        shape: the model's.
        config: the run's configuration.
        b: bytes of an activation.
        cpu: the device is a CPU.
        adapter: the policy answers, not the base.
        speed: of the device.
    """
    return answering(
        shape,
        rows=len(config.samples.prompts) or config.samples.count,
        prompt=config.data.max_prompt_length,
        new=config.samples.max_new_tokens,
        b=b,
        adapter=adapter_weights(shape, config) if adapter else 0,
        quantized=config.model.quantization == "nf4",
        cpu=cpu,
        flops=speed.flops,
        bandwidth=speed.bandwidth,
        launch=speed.launch,
    )


def answering(
    shape: Shape,
    *,
    rows: int,
    prompt: int,
    new: int,
    b: int,
    adapter: int,
    quantized: bool,
    cpu: bool,
    flops: float,
    bandwidth: float,
    launch: float,
) -> Answering:
    """Estimate what it takes to continue prompts, all as one batch.

    Args:
        shape: the model's.
        rows: prompts.
        prompt: tokens of the longest one.
        new: tokens of an answer at the most.
        b: bytes of an activation.
        adapter: weights of the adapter; 0 for the base's answers.
        quantized: the linear layers are in 4 bits.
        cpu: the device is a CPU.
        flops: operations a second that products reach.
        bandwidth: bytes a second that copies reach.
        launch: seconds to launch one layer's kernels.
    """
    if not rows:
        return Answering(0.0, 0.0, 0.0)
    tokens, total = rows * prompt, prompt + new
    head = shape.embedding

    def products(each: float) -> float:
        """Operations of passes over so many tokens, but for attention."""
        return 2.0 * (shape.linear + adapter) * each + 2.0 * head * rows

    def weights(fused: bool) -> float:
        """Bytes that one pass moves for the weights; the adapter is cast and read."""
        dequantized = CPU_DEQUANTIZING if cpu else STORED + 2 * b
        linear = (STORED if fused else dequantized) if quantized else b
        return shape.linear * linear + head * b + adapter * (4 + 2 * b)

    floor = 0.0 if cpu else shape.layers * launch
    attended = 4.0 * shape.q * shape.layers * rows * prompt * prompt
    first = max((products(tokens) + attended) / flops + weights(False) / bandwidth, floor)
    # on average the cache holds the prompt and half of the answer
    held = sum(2 * shape.kv * b * rows * _seen(shape, layer, prompt + new / 2) for layer in range(shape.layers))
    moved = weights(not cpu and rows <= FUSED_ROWS) + CACHE_PASSES * held
    each = max(products(rows) / flops + moved / bandwidth, floor)
    cache = sum(2.0 * shape.kv * b * rows * _seen(shape, layer, total) for layer in range(shape.layers))
    return Answering(
        first + max(new - 1, 0) * each, cache + _passing(shape, tokens, rows * prompt * prompt, b, quantized), cache
    )


def _seen(shape: Shape, layer: int, tokens: float) -> float:
    """Tokens whose keys and values a layer's cache holds: a sliding window keeps no more than it sees."""
    return min(tokens, shape.window) if shape.window is not None and shape.is_windowed(layer) else tokens


def _passing(shape: Shape, tokens: int, pairs: int, b: int, quantized: bool) -> float:
    """Bytes at the highest point of the pass over the prompts: in the MLP, in attention, or in a norm.

    Args:
        shape: the model's.
        tokens: of all prompts, padding included.
        pairs: places of queries times places of keys, of all prompts.
        b: bytes of an activation.
        quantized: one layer's weights are dequantized at a time.
    """
    weight = shape.largest_linear * (b + 4 / 64) if quantized else 0.0
    # the embeddings, the residual, and the normed input
    stream = 3.0 * tokens * shape.hidden * b
    mlp = stream + tokens * (3 * shape.intermediate + shape.hidden) * b + weight
    # the mask as booleans and in the activations' type
    attention = stream + tokens * (4 * shape.q + 4 * shape.kv) * b + pairs * (1 + b)
    norm = stream + tokens * shape.hidden * (8 + b)
    return max(mlp, attention, norm)
