"""A random-weight model of every family that the GGUF converter knows, with its quirks switched on."""

from __future__ import annotations

from typing import Any

import transformers
from export import toys

COMMON: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": toys.VOCABULARY,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}

# name -> config class, its settings beside COMMON
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama3-rope": ("LlamaConfig", {"rope_parameters": LLAMA3_ROPE}),
    "llama-linear-rope": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "llama-yarn": ("LlamaConfig", {"rope_parameters": YARN_ROPE}),
    "llama-tied-biased": ("LlamaConfig", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama-hidden-320": ("LlamaConfig", {"hidden_size": 320, "intermediate_size": 352}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 64}),
    "gemma": ("GemmaConfig", {"num_key_value_heads": 1, "head_dim": 32}),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 32, "max_position_embeddings": 256},
    ),
    "phi3": ("Phi3Config", {"sliding_window": None}),
}


def config(name: str, **changes: Any) -> transformers.PretrainedConfig:
    """The toy of a family."""
    kind, settings = FAMILIES[name]
    return getattr(transformers, kind)(**{**COMMON, **settings, **changes})
