"""The sizes of a base, and the configurations of the shipped presets' bases."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qdpo.config.schema import is_target


@dataclass(frozen=True)
class Shape:
    """What disk, time and files depend on, of a model of any architecture.

    Attributes:
        kind: transformers' `model_type`.
        hidden: width of the residual stream.
        vocab: rows of the embedding.
        tied: the embedding is the output head too.
        parameters: all weights.
        matrices: of each decoder layer the linear layers by name: (rows, columns).
    """

    kind: str
    hidden: int
    vocab: int
    tied: bool
    parameters: int
    matrices: tuple[dict[str, tuple[int, int]], ...]

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return len(self.matrices)

    def _matrices(self) -> Iterator[tuple[int, int]]:
        for layer in self.matrices:
            yield from layer.values()

    @property
    def linear(self) -> int:
        """Weights of all decoder layers' linear layers, which are kept in 4 bits."""
        return sum(map(math.prod, self._matrices()))

    @property
    def largest_linear(self) -> int:
        """Weights of the largest of them."""
        return max(map(math.prod, self._matrices()))

    @property
    def embedding(self) -> int:
        """Weights of the token embedding."""
        return self.vocab * self.hidden

    @property
    def unquantized(self) -> int:
        """Weights that are not in linear layers: embedding, output head, norms, biases, experts that are one tensor."""
        return self.parameters - self.linear

    def lora(self, rank: int, targets: list[str] | str) -> int:
        """Weights of an adapter on the layers of these names; a text takes all but those that choose experts."""
        parts = ((path.rsplit(".", 1)[-1], part) for layer in self.matrices for path, part in layer.items())
        return sum(rank * (rows + columns) for name, (rows, columns) in parts if is_target(name, targets))

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Shape:
        """From what `dataclasses.asdict` made of one, by way of JSON."""
        matrices = tuple({name: (part[0], part[1]) for name, part in layer.items()} for layer in stored["matrices"])
        return cls(**{**stored, "matrices": matrices})


def _mistral(**changes: Any) -> dict[str, Any]:
    return {
        "model_type": "mistral",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 14336,
        "vocab_size": 32000,
        "sliding_window": 4096,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        **changes,
    }


MISTRAL_7B = _mistral()
"""config.json of mistralai/Mistral-7B-v0.1: 7,241,732,096 weights."""

GEMMA_7B: dict[str, Any] = {
    "model_type": "gemma",
    "hidden_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "intermediate_size": 24576,
    "vocab_size": 256000,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
"""config.json of google/gemma-7b: 8,537,680,896 weights."""

# The bases of the shipped presets: fine-tunes of these two. Those that bring two ChatML tokens have two rows more.
SHIPPED: dict[str, dict[str, Any]] = {
    "mlabonne/NeuralMarcoro14-7B": MISTRAL_7B,
    "mlabonne/Marcoro14-7B-slerp": MISTRAL_7B,
    "teknium/OpenHermes-2.5-Mistral-7B": _mistral(vocab_size=32002),
    "alignment-handbook/zephyr-7b-sft-full": MISTRAL_7B,
    "HuggingFaceH4/mistral-7b-sft-alpha": MISTRAL_7B,
    "HuggingFaceH4/mistral-7b-sft-beta": MISTRAL_7B,
    "fblgit/zephyr-lora-dpo-b1": MISTRAL_7B,
    "HuggingFaceH4/zephyr-7b-gemma-sft-v0.1": GEMMA_7B,
    "mistralai/Mistral-7B-v0.1": MISTRAL_7B,
    "google/gemma-7b": GEMMA_7B,
}
