"""The model families that can be written as GGUF. Adding one is adding a line here, and its quirks below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf
import torch
from gguf import MODEL_ARCH as Arch

from qdpo.errors import InputMissingError


@dataclass(frozen=True)
class Family:
    """How a family's weights and settings differ between transformers and llama.cpp.

    Attributes:
        arch: llama.cpp's architecture.
        activation: what its feed-forward is computed with there.
        permutes: llama.cpp rotates neighbouring pairs in the heads, transformers the two halves, so the rows of q and
            k change places.
        norm_plus_one: RMSNorm multiplies by 1 + w in transformers, by the stored weight in llama.cpp.
        needs_tied_head: llama.cpp takes the embedding as the head, always.
        check: refuses settings that llama.cpp computes differently.
    """

    arch: Arch
    activation: tuple[str, ...] = ("silu",)
    permutes: bool = False
    norm_plus_one: bool = False
    needs_tied_head: bool = False
    check: Callable[[dict[str, Any]], None] = lambda config: None

    @property
    def name(self) -> str:
        """The architecture's name in the file."""
        return str(gguf.MODEL_ARCH_NAMES[self.arch])


def _gemma2_scale(config: dict[str, Any]) -> None:
    head_dim = config.get("head_dim", 256)
    by_size = config["hidden_size"] // config["num_attention_heads"] if config["num_hidden_layers"] == 46 else head_dim
    if (scalar := config.get("query_pre_attn_scalar", head_dim)) != by_size:
        raise InputMissingError(
            f"query_pre_attn_scalar is {scalar}, llama.cpp scales this Gemma 2 by {by_size}",
            "export safetensors instead",
        )


_GELU = ("gelu", "gelu_pytorch_tanh")

FAMILIES = {
    "LlamaForCausalLM": Family(Arch.LLAMA, permutes=True),
    "MistralForCausalLM": Family(Arch.LLAMA, permutes=True),
    "Qwen2ForCausalLM": Family(Arch.QWEN2),
    "Qwen3ForCausalLM": Family(Arch.QWEN3),
    "GemmaForCausalLM": Family(Arch.GEMMA, _GELU, norm_plus_one=True, needs_tied_head=True),
    "Gemma2ForCausalLM": Family(Arch.GEMMA2, _GELU, norm_plus_one=True, needs_tied_head=True, check=_gemma2_scale),
    "Phi3ForCausalLM": Family(Arch.PHI3),
}


def family_of(config: dict[str, Any]) -> Family:
    """The family of a model.

    Raises:
        InputMissingError: it is not among the known ones, or uses something that llama.cpp computes differently.
    """
    architecture = (config.get("architectures") or ["none named in config.json"])[0]
    family = FAMILIES.get(architecture)
    if family is None:
        raise InputMissingError(
            f"no GGUF for {architecture}: qdpo converts {', '.join(FAMILIES)}",
            "export safetensors and use llama.cpp's convert_hf_to_gguf.py",
        )
    activation = config.get("hidden_activation") or config.get("hidden_act")
    if activation is not None and activation not in family.activation:
        raise InputMissingError(
            f"{architecture} with {activation}: llama.cpp computes {family.activation[-1]}",
            "export safetensors instead",
        )
    if family.needs_tied_head and not config.get("tie_word_embeddings", True):
        raise InputMissingError(
            f"{architecture}: llama.cpp takes the embedding as the head, but here they differ",
            "the adapter trained one of them alone; export safetensors instead",
        )
    family.check(config)
    return family


def heads_of(config: dict[str, Any]) -> tuple[int, int, int]:
    """Query heads, key/value heads, and the size of a head."""
    heads = int(config["num_attention_heads"])
    return (
        heads,
        int(config.get("num_key_value_heads") or heads),
        int(config.get("head_dim") or 0) or (int(config["hidden_size"]) // heads),
    )


def to_gguf(family: Family, config: dict[str, Any], name: str, x: torch.Tensor, *, back: bool = False) -> torch.Tensor:
    """A tensor's values as llama.cpp expects them.

    Args:
        name: the tensor's name in transformers.
        x: [rows, columns] or [rows].
        back: from llama.cpp's values to transformers' instead.
    """
    heads, kv_heads, _ = heads_of(config)
    turn = uninterleave if back else interleave
    if family.norm_plus_one and name.endswith("norm.weight"):
        return x - 1 if back else x + 1
    if family.permutes and ".q_proj." in name:
        return turn(x, heads)
    if family.permutes and ".k_proj." in name:
        return turn(x, kv_heads)
    return x


def interleave(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from [first half, second half] to neighbouring pairs."""
    return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape)


def uninterleave(x: torch.Tensor, heads: int) -> torch.Tensor:
    """The inverse of `interleave`."""
    return x.reshape(heads, x.shape[0] // heads // 2, 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape)
