"""Tiny random decoders of real architectures, pairs of random tokens, and the slow, plain way to score them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from qdpo.data.pairs import TokenPair
from qdpo.engine.layout import Pack
from qdpo.engine.logps import PackScores, head_of, hidden_of, score_tokens, sum_per_sequence

VOCAB = 97

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

# What each one adds: grouped heads, a window shorter than the prompts, biases, tied embeddings with a scaled RMSNorm,
# soft-capped scores and logits with alternating windows, normalised queries and keys, one matrix for Q, K and V.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_one_kv_head": ("llama", {"num_key_value_heads": 1}),
    "llama_rope_scaled": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "mistral_window": ("mistral", {"sliding_window": 6}),
    "qwen2": ("qwen2", {}),
    "gemma_tied": ("gemma", {"tie_word_embeddings": True}),
    "gemma2": (
        "gemma2",
        {
            "sliding_window": 6,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
            "query_pre_attn_scalar": 8,
        },
    ),
    "qwen3": ("qwen3", {}),
    "phi3": ("phi3", {"sliding_window": None}),
}


def build(name: str, dtype: torch.dtype = torch.float64, seed: int = 0, attention: str = "sdpa") -> Any:
    """A frozen random model of one of `ARCHITECTURES`, its logits spread over a few nats."""
    kind, changes = ARCHITECTURES[name]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**SHAPE, **changes})
    # soft-capped scores exist in transformers' eager attention only
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager" if kind == "gemma2" else attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype).requires_grad_(False)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Unfreeze the linear layers of the decoder's blocks (not embeddings, norms and head) and return their weights."""
    weights = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "layers." in name:
            weights.append(module.weight.requires_grad_(True))
    return weights


def words(rng: random.Random, length: int) -> list[int]:
    """Random ids, none of them special."""
    return [rng.randrange(3, VOCAB) for _ in range(length)]


def make_pairs(seed: int = 0) -> list[TokenPair]:
    """Pairs of every awkward form: different lengths, one-token answers, shared beginnings, one inside the other."""
    rng = random.Random(seed)
    shared, answer = words(rng, 3), words(rng, 7)
    forms = [
        (words(rng, 9), words(rng, 5), words(rng, 8)),
        (words(rng, 1), words(rng, 1), words(rng, 1)),
        (words(rng, 13), shared + words(rng, 4), shared + words(rng, 1)),
        (words(rng, 4), answer, answer[:5]),
        (words(rng, 6), answer[:2], answer),
        (words(rng, 2), words(rng, 12), words(rng, 2)),
    ]
    return [TokenPair(row, [1, *prompt], chosen, rejected) for row, (prompt, chosen, rejected) in enumerate(forms)]


def separate_logps(model: nn.Module, pairs: Sequence[TokenPair]) -> Tensor:
    """(2n,) summed log-probabilities, chosen first: every sequence on its own, full logits, no padding, no packing."""
    values = []
    for side in ("chosen", "rejected"):
        for pair in pairs:
            completion = getattr(pair, side)
            ids = torch.tensor([pair.prompt + completion])
            logits = model(input_ids=ids, use_cache=False).logits[0, len(pair.prompt) - 1 : -1]
            values.append(torch.log_softmax(logits, -1).gather(1, torch.tensor(completion)[:, None]).sum())
    return torch.stack(values)


def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers' casts to fp32 (norms, RoPE, softmax) be casts to fp64, so that only mathematics remains."""
    for name in ("float32", "float"):
        monkeypatch.setattr(torch, name, torch.float64)
    monkeypatch.setattr(Tensor, "float", Tensor.double)


def score_pack(model: Any, pack: Pack) -> PackScores:
    """The scores of a pack that is at hand, by a model whose attention is installed."""
    tokens = score_tokens(hidden_of(model, pack).index_select(0, pack.rows), head_of(model), pack.targets)
    return sum_per_sequence(tokens, pack.scored, pack.sequence, 2 * pack.n_pairs)
