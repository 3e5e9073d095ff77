"""The model's hyperparameters as GGUF keys, rotary position embedding among them."""

from __future__ import annotations

import math
from typing import Any

import gguf
import numpy as np
from gguf import MODEL_ARCH as Arch
from gguf import GGUFWriter

from qdpo.console import warn
from qdpo.errors import InputMissingError
from qdpo.export.gguf.families import Family, heads_of
from qdpo.export.gguf.kinds import Kind


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


def rope_of(config: dict[str, Any]) -> dict[str, Any]:
    """The RoPE settings, from transformers 5's `rope_parameters` or the older `rope_theta` and `rope_scaling`."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope.setdefault("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    return rope


def rotated_size(config: dict[str, Any]) -> int:
    """How many dimensions of a head are rotated."""
    return int(heads_of(config)[2] * rope_of(config)["partial_rotary_factor"])


def write_rope(writer: GGUFWriter, config: dict[str, Any]) -> None:
    """Write the RoPE keys.

    Raises:
        InputMissingError: a kind of scaling that llama.cpp does not have, or that is not known here.
    """
    rope = rope_of(config)
    writer.add_rope_dimension_count(rotated_size(config))
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope["rope_type"]
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        odd = {k: v for k, v in rope.items() if k in ("attention_factor", "mscale", "mscale_all_dim") and v is not None}
        if odd or not rope.get("truncate", True):
            # llama.cpp computes these from `factor`, whatever a file says (b11434, `llama-context.cpp`).
            raise InputMissingError(
                f"YaRN RoPE with {sorted(odd) or 'truncate: false'}: llama.cpp has its own",
                "export safetensors instead",
            )
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "beta_fast" in rope:
            writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        if "beta_slow" in rope:
            writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    elif kind not in ("default", "llama3"):
        raise InputMissingError(f"RoPE scaling {kind!r} cannot be written as GGUF", "export safetensors instead")


def frequency_factors(config: dict[str, Any]) -> np.ndarray | None:
    """Llama 3's divisors of the frequencies, float32 [rotated_size / 2], stored as `rope_freqs.weight`.

    Long waves are stretched by `factor`, short ones kept, those between blended (transformers,
    `modeling_rope_utils._compute_llama3_parameters`).
    """
    rope = rope_of(config)
    if rope["rope_type"] != "llama3":
        return None
    size, context = rotated_size(config), rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    factors = []
    for frequency in rope["rope_theta"] ** -(np.arange(0, size, 2, dtype=np.float64) / size):
        turns = context * frequency / (2 * math.pi)  # how often the wave fits the original context
        if turns > high:
            factors.append(1.0)
        elif turns < low:
            factors.append(factor)
        else:
            kept = (turns - low) / (high - low)
            factors.append(1 / ((1 - kept) / factor + kept))
    return np.array(factors, np.float32)
