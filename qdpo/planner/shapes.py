"""The shape of a decoder: everything about a model that its memory, time and disk depend on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from qdpo.errors import UnavailableError


@dataclass(frozen=True)
class Shape:
    """A Llama-like decoder.

    Attributes:
        kind: transformers' `model_type`.
        hidden: width of the residual stream.
        layers: decoder layers.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of a head.
        intermediate: width of the gated MLP.
        vocab: rows of the embedding.
        tied: the embedding is the output head too.
        qkv_bias: q, k and v have a bias.
        qk_norm: queries and keys are normalised per head (Qwen 3, Gemma 3).
        sandwich: norms behind attention and MLP too (Gemma 2).
        score_cap: attention scores are soft-capped, so they are formed in full (Gemma 2).
        logit_cap: logits are soft-capped.
        window: tokens that a sliding window sees; None for full attention everywhere.
        full_every: of that many layers the last one has full attention; 1 for all windowed. Without a window: unused.
    """

    kind: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    sandwich: bool = False
    score_cap: bool = False
    logit_cap: bool = False
    window: int | None = None
    full_every: int = 1

    @property
    def q(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of all key (or value) heads."""
        return self.kv_heads * self.head_dim

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one decoder layer: (rows, columns)."""
        h, q, kv, i = self.hidden, self.q, self.kv, self.intermediate
        return {
            "q_proj": (q, h),
            "k_proj": (kv, h),
            "v_proj": (kv, h),
            "o_proj": (h, q),
            "gate_proj": (i, h),
            "up_proj": (i, h),
            "down_proj": (h, i),
        }

    @property
    def linear(self) -> int:
        """Weights of all decoder layers' linear layers."""
        return self.layers * sum(math.prod(shape) for shape in self.projections.values())

    @property
    def largest_linear(self) -> int:
        """Weights of the largest of them."""
        return max(math.prod(shape) for shape in self.projections.values())

    @property
    def embedding(self) -> int:
        """Weights of the token embedding."""
        return self.vocab * self.hidden

    @property
    def unquantized(self) -> int:
        """Weights that stay in 16 bits: embedding, output head, norms, biases."""
        norms = self.hidden * (1 + self.layers * (4 if self.sandwich else 2))
        norms += 2 * self.head_dim * self.layers if self.qk_norm else 0
        biases = (self.q + 2 * self.kv) * self.layers if self.qkv_bias else 0
        return self.embedding * (1 if self.tied else 2) + norms + biases

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.linear + self.unquantized

    def lora(self, rank: int, targets: list[str]) -> int:
        """Weights of an adapter."""
        return self.layers * sum(
            rank * (rows + columns) for name, (rows, columns) in self.projections.items() if name in targets
        )

    def window_of(self, layer: int) -> int | None:
        """Tokens that a layer's sliding window sees; None for full attention."""
        return self.window if self.full_every == 1 or (layer + 1) % self.full_every else None


# model_type -> what differs from Llama and does not stand in config.json
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "gemma": {"tied": True},
    "gemma2": {"tied": True, "sandwich": True, "full_every": 2},
}


def shape_of(config: dict[str, Any], name: str) -> Shape:
    """The shape that the content of a config.json describes; `name` is the model's, for messages.

    Raises:
        UnavailableError: a kind of model that the planner does not know, or numbers are missing.
    """
    kind = str(config.get("model_type"))
    if kind not in KINDS:
        raise UnavailableError(
            f"the planner does not know models of type {kind} ({name}); it knows {', '.join(KINDS)}",
            "`qdpo train --preset ... --dry-run` checks everything else; training itself does not need the plan",
        )
    known = {"tied": False, "qkv_bias": False, **KINDS[kind]}
    known["tied"] = bool(config.get("tie_word_embeddings", known["tied"]))
    known["qkv_bias"] = bool(config.get("attention_bias", known["qkv_bias"]))
    try:
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        window = config.get("sliding_window")
        if kind in ("qwen2", "qwen3") and not config.get("use_sliding_window"):
            window = None
        return Shape(
            kind=kind,
            hidden=hidden,
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            intermediate=int(config["intermediate_size"]),
            vocab=int(config["vocab_size"]),
            score_cap=config.get("attn_logit_softcapping") is not None,
            logit_cap=config.get("final_logit_softcapping") is not None,
            window=None if window is None else int(window),
            **known,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnavailableError(f"{name}: config.json lacks what a plan needs: {error}") from error


MISTRAL_7B = Shape("mistral", 4096, 32, 32, 8, 128, 14336, 32000, window=4096)
"""config.json of mistralai/Mistral-7B-v0.1: 7,241,732,096 weights."""

GEMMA_7B = Shape("gemma", 3072, 28, 16, 16, 256, 24576, 256000, tied=True)
"""config.json of google/gemma-7b: 8,537,680,896 weights."""

# The bases of the shipped presets: fine-tunes of these two. Those that bring two ChatML tokens have two rows more.
SHIPPED: dict[str, Shape] = {
    "mlabonne/NeuralMarcoro14-7B": MISTRAL_7B,
    "mlabonne/Marcoro14-7B-slerp": MISTRAL_7B,
    "teknium/OpenHermes-2.5-Mistral-7B": Shape("mistral", 4096, 32, 32, 8, 128, 14336, 32002, window=4096),
    "alignment-handbook/zephyr-7b-sft-full": MISTRAL_7B,
    "HuggingFaceH4/mistral-7b-sft-alpha": MISTRAL_7B,
    "HuggingFaceH4/mistral-7b-sft-beta": MISTRAL_7B,
    "fblgit/zephyr-lora-dpo-b1": MISTRAL_7B,
    "HuggingFaceH4/zephyr-7b-gemma-sft-v0.1": GEMMA_7B,
    "mistralai/Mistral-7B-v0.1": MISTRAL_7B,
    "google/gemma-7b": GEMMA_7B,
}
