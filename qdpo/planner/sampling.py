"""What the written answers of an evaluation cost: time and memory of decoding a batch of prompts (training/samples.py).

A decoded token reads all weights for a few rows, so bandwidth and launches decide, and the number of prompts hardly
does. A 4-bit layer is read as it is stored where bitsandbytes has its own product for that, else dequantized.
"""

from __future__ import annotations

from qdpo.config.schema import RunConfig
from qdpo.planner.cards import LAUNCH_SECONDS, Card
from qdpo.planner.parts import BLOCK, adapter_weights
from qdpo.planner.shapes import Shape

FUSED_ROWS = 4
"""Rows up to which bitsandbytes reads 4-bit weights as they are stored, on every card (`_GEMM_4BIT_CUSTOM_FLOOR_M` in
its backends/cuda/ops.py). Above, its rule depends on the card, and a plan counts them as dequantized."""

STORED = 0.5 + 1 / BLOCK
"""Bytes of a 4-bit weight with its share of the scale."""

CPU_DEQUANTIZING = 25.0
"""Bytes that could be moved while a CPU dequantizes one weight, at the 10 GB/s and core that cards.py guesses: 4096 x
4096 weights took 32 to 54 ms in one thread (`bitsandbytes.functional.dequantize_4bit`, bf16 and fp32)."""

CACHE_PASSES = 3
"""How often a token moves the cache: transformers' DynamicCache reads and writes it to append, attention reads it."""


def _rows(config: RunConfig) -> int:
    """Prompts, which are answered as one batch."""
    return len(config.samples.prompts) or config.samples.count


def answers_seconds(shape: Shape, config: RunConfig, card: Card, b: int, *, adapter: bool) -> float:
    """Time to answer a run's prompts once, each of the longest length that it allows, to the last token allowed.

    Args:
        b: bytes of an activation.
        adapter: the policy answers, not the base.
    """
    rows, prompt, new = _rows(config), config.data.max_prompt_length, config.samples.max_new_tokens
    if not rows:
        return 0.0
    trained, head = adapter_weights(shape, config) if adapter else 0, shape.embedding

    def products(tokens: float) -> float:
        """Operations of passes over so many tokens, but for attention."""
        return 2.0 * (shape.linear + trained) * tokens + 2.0 * head * rows

    def weights(fused: bool) -> float:
        """Bytes that one pass moves for the weights; the adapter is cast and read."""
        dequantized = CPU_DEQUANTIZING if card.is_cpu else STORED + 2 * b
        linear = (STORED if fused else dequantized) if config.model.quantization == "nf4" else b
        return shape.linear * linear + head * b + trained * (4 + 2 * b)

    floor = 0.0 if card.is_cpu else shape.layers * LAUNCH_SECONDS
    attended = 4.0 * shape.q * shape.layers * rows * prompt * prompt
    first = max((products(rows * prompt) + attended) / card.flops + weights(False) / card.copied, floor)
    # on average the cache holds the prompt and half of the answer
    moved = weights(not card.is_cpu and rows <= FUSED_ROWS)
    moved += CACHE_PASSES * cache_bytes(shape, config, b, prompt + new / 2)
    each = max(products(rows) / card.flops + moved / card.copied, floor)
    return first + max(new - 1, 0) * each


def cache_bytes(shape: Shape, config: RunConfig, b: int, tokens: float) -> float:
    """Keys and values of so many tokens of each prompt; a sliding window keeps no more than it sees."""
    seen = (min(tokens, shape.window_of(layer) or tokens) for layer in range(shape.layers))
    return sum(2.0 * shape.kv * b * _rows(config) * each for each in seen)


def answers_peak(shape: Shape, config: RunConfig, b: int) -> float:
    """Bytes at the highest point above weights and adapter: the whole cache, and the pass over the prompts.

    That pass is highest in the MLP, in attention, or in a norm.
    """
    prompt, tokens = config.data.max_prompt_length, _rows(config) * config.data.max_prompt_length
    weight = shape.largest_linear * (b + 4 / BLOCK) if config.model.quantization == "nf4" else 0.0
    # the embeddings, the residual, and the normed input
    stream = 3.0 * tokens * shape.hidden * b
    mlp = stream + tokens * (3 * shape.intermediate + shape.hidden) * b + weight
    # the mask as booleans and in the activations' type
    attention = stream + tokens * (4 * shape.q + 4 * shape.kv) * b + tokens * prompt * (1 + b)
    norm = stream + tokens * shape.hidden * (8 + b)
    cache = cache_bytes(shape, config, b, prompt + config.samples.max_new_tokens)
    return cache + max(mlp, attention, norm) if tokens else 0.0
