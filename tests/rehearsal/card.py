"""Pretending a card: what torch.cuda says of it, and which attention kernel it would choose."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from rehearsal.watch import Watch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from qdpo.hardware import GIB

_WHOLE = torch.library.Library("aten", "IMPL")
DEVICE = torch.device("cuda", 0)


@dataclass(frozen=True)
class Card:
    """A card.

    Attributes:
        name: what the maker calls it.
        capability: compute capability.
        memory: GiB that it reports.
    """

    name: str
    capability: tuple[int, int]
    memory: float


CARDS = {
    "t4": Card("Tesla T4", (7, 5), 14.6),
    "a100": Card("NVIDIA A100-SXM4-40GB", (8, 0), 39.4),
    "a40": Card("NVIDIA A40", (8, 6), 44.4),
    "rtx4090": Card("NVIDIA GeForce RTX 4090", (8, 9), 23.5),
    "h200": Card("NVIDIA H200", (9, 0), 139.7),
    "rtx5090": Card("NVIDIA GeForce RTX 5090", (12, 0), 31.4),
}
"""One card of each compute capability that has an own path somewhere."""


def pretend(card: Card, watch: Watch) -> None:
    """Let torch say that this card is there; for the rest of the process."""
    memory = int(card.memory * GIB)
    properties = SimpleNamespace(
        name=card.name,
        major=card.capability[0],
        minor=card.capability[1],
        total_memory=memory,
        multi_processor_count=80,
    )

    def forget_peak(*args: Any) -> None:
        watch.highest = watch.bytes

    said: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *args: card.name,
        "get_device_capability": lambda *args: card.capability,
        "get_device_properties": lambda *args: properties,
        "is_bf16_supported": lambda *args, **kwargs: True,  # by emulation, on any card
        "get_rng_state": lambda *args: torch.zeros(16, dtype=torch.uint8),
        "get_rng_state_all": lambda *args: [torch.zeros(16, dtype=torch.uint8)],
        "memory_allocated": lambda *args: watch.bytes,
        "memory_reserved": lambda *args: watch.bytes,
        "max_memory_allocated": lambda *args: watch.highest,
        "max_memory_reserved": lambda *args: watch.highest,
        "get_per_process_memory_fraction": lambda *args: 1.0,
        "mem_get_info": lambda *args: (memory - watch.bytes, memory),
        "reset_peak_memory_stats": forget_peak,
        "synchronize": lambda *args: watch._wait("synchronize"),
    }
    random = ("set_rng_state", "set_rng_state_all", "manual_seed", "manual_seed_all")
    for name, value in {**said, **dict.fromkeys((*random, "set_device", "empty_cache"), lambda *args: None)}.items():
        setattr(torch.cuda, name, value)
    torch.cuda.memory.reset_peak_memory_stats = forget_peak  # type: ignore[assignment]
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    F.scaled_dot_product_attention = _attention(card)
    _as_one(_WHOLE)
    nn.Module._apply = _moved_once(nn.Module._apply)  # type: ignore[method-assign]


FUSED_ON_CUDA = ("silu_backward",)
"""Operations that are one kernel on a card, and that a build without CUDA takes apart."""


def _as_one(library: torch.library.Library) -> None:
    """Let them stay whole; nothing is computed, so it does not matter by what."""
    for name in FUSED_ON_CUDA:
        library.impl(name, lambda *args: None, "CUDA")


def _moved_once(real: Any) -> Any:
    """What is on the card stays as it is: torch cannot exchange a parameter without values for another."""

    def apply(module: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
        if any(isinstance(parameter, FakeTensor) for parameter in module._parameters.values()):
            return module
        return real(module, function, recurse)

    return apply


def _attention(card: Card) -> Any:
    """`scaled_dot_product_attention` as torch chooses it on the card (sdp_utils.cpp), cuDNN left out."""

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if query.device.type != "cuda":
            return real(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if enable_gqa:
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        if attn_mask is None and card.capability >= (8, 0) and query.dtype in (torch.float16, torch.bfloat16):
            return torch.ops.aten._scaled_dot_product_flash_attention(
                query, key, value, dropout_p, is_causal, False, scale=scale
            )[0]
        if attn_mask is not None:
            attn_mask = _bias(attn_mask, query.dtype).expand(*query.shape[:3], key.shape[2])
        keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, keep, dropout_p, is_causal, scale=scale
        )[0]

    real = F.scaled_dot_product_attention
    return attend


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as the memory-efficient kernel takes it: added to the scores, its strides multiples of 8."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(mask.logical_not(), float("-inf"))
    if mask.stride(-1) == 1 and all(stride % 8 == 0 for stride in mask.stride()[:-1]):
        return mask
    width = mask.shape[-1]
    return F.pad(mask, (0, -width % 8 or 8))[..., :width]
