"""Architectures for which a shared prefix is wrong by construction, known by name before anything is run.

A layer that carries a state from token to token would carry chosen's into rejected. Attention that counts places in
the row instead of positions would see rejected further from the prompt than it is.
"""

from __future__ import annotations

from typing import Any

STATEFUL_LAYERS = ("linear", "mamba", "conv", "recurrent", "compressed", "sparse", "ssm", "rwkv", "lightning")
"""Parts of the names in `config.layer_types` of layers that carry state, compress or select."""

STATEFUL = (
    "mamba", "mamba2", "falcon_mamba", "falcon_h1", "jamba", "bamba", "zamba", "zamba2", "nemotron_h",
    "granitemoehybrid", "qwen3_next", "kimi_linear", "olmo_hybrid", "minimax", "recurrent_gemma", "rwkv",
    "lfm2", "lfm2_moe", "xlstm",
)  # fmt: skip
"""Types whose layers carry a state: state spaces, linear attention, recurrences, short convolutions."""

BY_PLACE = ("bloom", "mpt")
"""Types that take distances from places in the row (ALiBi without positions)."""

SELECTIVE = ("deepseek_v32", "deepseek_v4", "glm_moe_dsa")
"""Types whose attention compresses keys or selects the best ones, which short probes cannot see."""


def refusal(config: Any, stateful: bool = False) -> str | None:
    """Why a model's prompts cannot be shared, None when nothing speaks against trying.

    Args:
        config: the model's configuration.
        stateful: what the model class says of itself (`_is_stateful`).
    """
    config = config.get_text_config()
    name = config.model_type.removesuffix("_text")
    if name in STATEFUL or name.startswith("qwen3_5"):
        return f"{name} carries a state from token to token"
    if name in BY_PLACE or getattr(config, "alibi", False):
        return f"{name} measures distances by places in the row (ALiBi)"
    if name in SELECTIVE or getattr(config, "index_topk", None):
        return f"{name} compresses or selects keys"
    kinds = sorted(set(getattr(config, "layer_types", None) or []))
    odd = [kind for kind in kinds if any(part in kind for part in STATEFUL_LAYERS)]
    if odd:
        return f"{name} has layers of type {', '.join(odd)}"
    if any("chunk" in kind for kind in kinds):
        return f"{name} has chunked attention ({', '.join(kinds)})"
    return f"{name} says that it carries state" if stateful else None
