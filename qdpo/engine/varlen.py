"""Attention over packed rows in one kernel: the variable-length FlashAttention that torch brings.

Queries stay where they are in the row; the keys of every segment are gathered as [prefix | own]. With the causal mask
aligned at the lower right that is the segment's mask, and since distances there are distances in positions, a sliding
window is the kernel's own. No mask is made and nothing is padded. It needs CUDA of compute capability 8.0, half
precision and scores without soft-capping; a layer that does not fit goes through `qdpo.engine.attention`.

torch 2.10 has neither scale nor window, and the probe takes the other way; 2.11 cannot share a key among queries and
gets it once for each of them; from 2.12 on everything is there.
"""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from qdpo.data.pairs import TokenPair
from qdpo.engine import attention
from qdpo.engine.attention import packed_attention
from qdpo.engine.device import capability_of, kind_of
from qdpo.engine.layout import Pack, build_pack
from qdpo.engine.transfer import all_to_device

NAME = "qdpo_packed_varlen"

HALF = (torch.float16, torch.bfloat16)
LARGEST_HEAD = 256
"""Width of a head that FlashAttention takes at the most; it must be a multiple of 8."""

TRIAL = build_pack(
    [
        TokenPair(row, [0] * prompt, [1] * chosen, [2] * rejected)
        for row, (prompt, chosen, rejected) in enumerate(
            [(384, 192, 160), (200, 96, 128), (64, 24, 40), (640, 300, 220)]
        )
    ],
    range(4),
)
"""The row on which the kernels are timed: four pairs of common lengths."""
ROUNDS = 7
WARM_UP = 2
"""Rounds in which kernels are loaded."""


def register() -> None:
    """Make `attn_implementation="qdpo_packed_varlen"` known to transformers; harmless when done twice."""
    attention.register(NAME, varlen_attention)


def varlen_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Attention of one layer; arguments and result are those of `qdpo.engine.attention.packed_attention`."""
    pack: Pack | None = settings.get("qdpo_pack")
    if pack is None or settings.get("softcap") is not None or not fits(query, key, value):
        return packed_attention(module, query, key, value, attention_mask, **settings)
    sliding_window: int | None = settings.get("sliding_window")
    plan = _plan(pack, query.device)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (N, H, D)
    window = -1 if sliding_window is None or plan.longest_key <= sliding_window else sliding_window - 1
    output = kernel(
        q,
        k.index_select(0, plan.keys),
        v.index_select(0, plan.keys),
        plan.query_ends,
        plan.key_ends,
        plan.longest_query,
        plan.longest_key,
        scale=settings.get("scaling"),
        window_size=(window, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return output[None], None


def fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether FlashAttention takes these tensors."""
    width = query.shape[-1]
    return (
        kind_of(query.device) == "cuda"
        and capability_of(query.device) >= (8, 0)
        and query.dtype in HALF
        and query.dtype == key.dtype == value.dtype
        and width == key.shape[-1] == value.shape[-1]
        and width % 8 == 0
        and width <= LARGEST_HEAD
    )


def kernel(query: Tensor, key: Tensor, value: Tensor, *lengths: Any, enable_gqa: bool, **options: Any) -> Tensor:
    """`torch.nn.attention.varlen.varlen_attn`; where that has no `enable_gqa`, with every shared key repeated.

    Raises:
        NotImplementedError: this torch's function lacks another option.
    """
    from torch.nn.attention.varlen import varlen_attn

    known = _parameters(varlen_attn)
    if missing := [name for name in options if name not in known]:
        raise NotImplementedError(f"torch {torch.__version__}'s varlen_attn has no {' and no '.join(missing)}")
    if "enable_gqa" in known:
        options["enable_gqa"] = enable_gqa
    elif enable_gqa:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    output = varlen_attn(query, key, value, *lengths, **options)
    assert isinstance(output, Tensor)  # a pair only where return_aux is asked for
    return output


@cache
def _parameters(function: Callable[..., object]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


@dataclass(frozen=True)
class Plan:
    """Where the kernel finds the segments of a pack.

    Attributes:
        keys: places in the row of every segment's [prefix | own], one segment after the other.
        query_ends: (segments + 1,) int32, where each segment's queries end.
        key_ends: (segments + 1,) int32, where each segment's keys end.
        longest_query: tokens of the longest segment.
        longest_key: the same with its prefix.
    """

    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int


def _plan(pack: Pack, device: torch.device) -> Plan:
    if "varlen" not in pack.cache:
        places: list[int] = []
        for segment in pack.segments:
            places += range(segment.prefix_start, segment.prefix_start + segment.prefix_length)
            places += range(segment.start, segment.start + segment.length)
        queries = [segment.length for segment in pack.segments]
        keys = [segment.prefix_length + segment.length for segment in pack.segments]

        lists = (places, [0, *accumulate(queries)], [0, *accumulate(keys)])
        order, query_ends, key_ends = all_to_device([torch.tensor(values) for values in lists], device)
        pack.cache["varlen"] = Plan(order, query_ends.int(), key_ends.int(), max(queries), max(keys))
    return pack.cache["varlen"]


def is_faster(model: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this kernel takes less time than the other way with a model's heads; False where it cannot run."""
    if device.type != "cuda":
        return False
    config: Any = model.config
    config = config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    query, key, value = (
        torch.zeros(1, count, TRIAL.n_tokens, width, device=device, dtype=dtype, requires_grad=True)
        for count in (heads, shared, shared)
    )
    if not fits(query, key, value):
        return False
    times = seconds(query, key, value)
    return times["varlen"] < times["sdpa"]


def seconds(query: Tensor, key: Tensor, value: Tensor) -> dict[str, float]:
    """Median time of a forward and a backward pass on the trial's row, by kernel.

    Args:
        query: (1, H, N, D) on a CUDA device, with gradient.
        key: (1, H_kv, N, D).
        value: (1, H_kv, N, D).
    """
    pack = TRIAL.to(query.device)
    times: dict[str, list[float]] = {"varlen": [], "sdpa": []}
    with torch.enable_grad():
        for _ in range(WARM_UP + ROUNDS):
            for name, function in (("varlen", varlen_attention), ("sdpa", packed_attention)):
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record()
                output = function(nn.Module(), query, key, value, None, qdpo_pack=pack)[0]
                output.backward(torch.ones_like(output))
                end.record()
                end.synchronize()
                times[name].append(begin.elapsed_time(end) / 1000)
    return {name: statistics.median(measured[WARM_UP:]) for name, measured in times.items()}
