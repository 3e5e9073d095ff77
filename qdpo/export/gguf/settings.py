"""The model's hyperparameters as GGUF keys."""

from __future__ import annotations

from typing import Any

import gguf
from gguf import MODEL_ARCH as Arch
from gguf import GGUFWriter

from qdpo.console import warn
from qdpo.export.gguf.families import Family, heads_of
from qdpo.export.gguf.kinds import Kind
from qdpo.export.gguf.rope import write_rope


def write_settings(writer: GGUFWriter, family: Family, config: dict[str, Any], kind: Kind, vocabulary: int) -> None:
    """Write architecture, sizes, RoPE and windows."""
    heads, kv_heads, head_dim = heads_of(config)
    writer.add_file_type(kind.file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(context_length(family, config))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(vocabulary)
    write_rope(writer, config)
    if family.arch is Arch.GEMMA2:
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
        writer.add_sliding_window(config["sliding_window"])
    elif family.arch is Arch.PHI3:
        writer.add_sliding_window(0)


def window_of(family: Family, config: dict[str, Any]) -> int | None:
    """The attention window that the model has and llama.cpp does not compute for its architecture."""
    window = config.get("sliding_window")
    optional = family.arch in (Arch.QWEN2, Arch.QWEN3)
    if not window or family.arch is Arch.GEMMA2 or (optional and not config.get("use_sliding_window")):
        return None
    return int(window) if window < config["max_position_embeddings"] else None


def context_length(family: Family, config: dict[str, Any]) -> int:
    """Positions up to which llama.cpp computes what the model was trained to."""
    return window_of(family, config) or int(config["max_position_embeddings"])


def warn_of_window(family: Family, config: dict[str, Any]) -> None:
    """Tell when the context is cut to the window."""
    if window := window_of(family, config):
        warn(
            f"the model attends to a window of {window:,} tokens, llama.cpp's {family.name} has no window: "
            f"the context length is written as {window:,} (the model's own is {config['max_position_embeddings']:,})"
        )
