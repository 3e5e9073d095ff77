"""How large a GGUF file will be, from the model's shape alone."""

from __future__ import annotations

import math

from qdpo.export.gguf.kinds import KINDS, Traits, stored_bytes, tensor_type
from qdpo.planner.shapes import Shape

BYTES_PER_TOKEN = 24
"""Of the vocabulary in the file: a token's text with its length, score and kind."""

_NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "qkv_proj": "attn_qkv",
    "gate_up_proj": "ffn_up",
}


def gguf_bytes(shape: Shape, kind: str) -> int:
    """Bytes of a GGUF file.

    Args:
        shape: the model's.
        kind: one of `KINDS`.
    """
    tensors = [("token_embd.weight", (shape.vocab, shape.hidden))]
    if not shape.tied:
        tensors.append(("output.weight", (shape.vocab, shape.hidden)))
    for number, layer in enumerate(shape.matrices):
        for path, part in layer.items():
            name = path.rsplit(".", 1)[-1]
            tensors.append((f"blk.{number}.{_NAMES.get(name, name)}.weight", part))
    traits = Traits(shape.layers, shape.tied, sharing=_sharing(shape.matrices[0]))
    total = BYTES_PER_TOKEN * shape.vocab
    counted = 0
    for name, part in tensors:
        weights = math.prod(part)
        total += stored_bytes(tensor_type(KINDS[kind], name, part, traits), weights)
        counted += weights
    # norms and biases are fp32
    return int(total + 4 * (shape.parameters - counted))


def _sharing(layer: dict[str, tuple[int, int]]) -> int:
    """Query heads that share a value head, from the heights of the projections."""
    rows = {path.rsplit(".", 1)[-1]: part for path, part in layer.items()}
    if "k_proj" in rows:
        return rows["q_proj"][0] // rows["k_proj"][0]
    if "qkv_proj" in rows:
        queries = rows["o_proj"][1]
        return 2 * queries // (rows["qkv_proj"][0] - queries)
    return 1
