"""Every text decoder of transformers as a tiny random model, and what the start-up probe decides for it.

python tests/engine/sweep.py            prints the table of docs/engine.md
python tests/engine/sweep.py llama opt  only these
"""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from qdpo.engine.probe import Decision, decide

SECONDS = 120
"""Processor time; a model that takes longer is left out."""

LARGEST = 40e6
"""Parameters; a type whose configuration does not shrink below is left out."""

# Whatever a configuration calls its sizes. A name that a type does not know is not given to it.
SMALL: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 211, "max_position_embeddings": 512, "pad_token_id": 3, "bos_token_id": 1,
    "eos_token_id": 2, "head_dim": 16, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_inner": 96, "n_positions": 512,
    "d_model": 64, "n_layers": 4, "n_heads": 4, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 48, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "ffn_hidden_size": 96, "decoder_ffn_dim": 96, "ffn_dim": 96, "word_embed_proj_dim": 64, "sliding_window": 12,
    "num_layers": 4, "rotary_dim": 16, "global_head_dim": 16, "num_global_key_value_heads": 2, "mamba_d_state": 8,
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_expand": 2, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "shared_expert_intermediate_size": 48,
    "moe_num_experts": 4, "moe_topk": 2, "attention_chunk_size": 16, "index_n_heads": 2, "index_head_dim": 16,
    "index_topk": 64,
}  # fmt: skip


class LeftOut(Exception):
    """A type that cannot be built as a tiny text decoder, and why."""


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise LeftOut when the block takes longer."""

    def late(*_: Any) -> None:
        raise LeftOut("takes too long")

    # processor time: a busy machine changes no decision
    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def small_config(kind: str) -> Any:
    """A configuration of a type, made small.

    Raises:
        LeftOut: the type is a wrapper around a text decoder of its own name.
    """
    base = AutoConfig.for_model(kind)
    if base.get_text_config() is not base:
        raise LeftOut("wraps another text decoder")
    changes = {key: value for key, value in SMALL.items() if hasattr(base, key)}
    if getattr(base, "sliding_window", None) is None:
        changes.pop("sliding_window", None)
    if getattr(base, "qk_rope_head_dim", None) is not None or kind in ("youtu", "minicpm3"):
        changes["num_key_value_heads"] = 4
        changes.pop("head_dim", None)
    if kind.startswith("gemma3n"):
        changes.pop("num_key_value_heads", None)
    if kind.startswith("gemma4") or kind == "falcon":
        changes.pop("head_dim", None)
    kinds = list(dict.fromkeys(getattr(base, "layer_types", None) or []))
    if kinds and not isinstance(getattr(type(base), "layer_types", None), property):
        if kind.startswith("lfm2"):
            kinds = ["conv", "full_attention"]
        changes["layer_types"] = [kinds[i % len(kinds)] for i in range(4)]
    return AutoConfig.for_model(kind, **changes)


def build(kind: str) -> Any:
    """A tiny random fp32 model of a type.

    Raises:
        LeftOut: it cannot be built.
    """
    try:
        config = small_config(kind)
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if size > LARGEST:
            raise LeftOut(f"does not shrink below {size / 1e6:.0f} M parameters")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float().eval()
    except LeftOut:
        raise
    except Exception as error:
        raise LeftOut(f"{type(error).__name__} when built small") from error
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3.0)
    return model.requires_grad_(False)


def probe(kind: str) -> Decision:
    """The probe's decision for a type.

    Raises:
        LeftOut: there is no tiny model of it.
    """
    with within(SECONDS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return decide(build(kind), torch.device("cpu"))


def sweep(kinds: list[str] | None = None) -> dict[str, str]:
    """The decision for every type: one of the probe's ways, or `left out`."""
    ways = {}
    for kind in kinds or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        try:
            decision = probe(kind)
            ways[kind] = decision.way
            print(kind, decision.way, decision.reason, file=sys.stderr, flush=True)
        except LeftOut as reason:
            ways[kind] = "left out"
            print(kind, "left out:", reason, file=sys.stderr, flush=True)
    return ways


def table(ways: dict[str, str]) -> str:
    """The decisions as a Markdown table."""
    lines = ["| layout | types | |", "|---|---|---|"]
    for way in ("packed", "packed_mask", "packed_masks", "unshared", "trl", "left out"):
        kinds = sorted(kind for kind, found in ways.items() if found == way)
        if kinds:
            lines.append(f"| `{way}` | {len(kinds)} | {', '.join(kinds)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(sweep(sys.argv[1:] or None)))
