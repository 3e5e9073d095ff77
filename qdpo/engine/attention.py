"""Attention over packed rows, plugged into transformers' public registries.

Every segment attends to its prefix and causally to itself. Two equal ways to compute it: a loop over segments (no
padding, best for few long ones) and two padded batches, prefixes and completions (best for many short ones). A pass
that brings no pack is ordinary SDPA, so that generation and other code keep working.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdpo.engine.layout import Pack, Segment
from qdpo.engine.sizes import LOOP_FROM
from qdpo.engine.transfer import all_to_device

NAME = "qdpo_packed"


def register(name: str = NAME, function: Callable[..., tuple[Tensor, None]] | None = None) -> None:
    """Make an `attn_implementation` known to transformers; harmless when done twice.

    Args:
        name: the implementation's.
        function: what computes it; None for `packed_attention`.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, function or packed_attention)
    AttentionMaskInterface.register(name, sdpa_mask)


def install(model: nn.Module, name: str = NAME) -> str | None:
    """Let every attention layer of a model go through `packed_attention`.

    In this process torch's SDPA is kept off cuDNN from then on: on Hopper and Blackwell it would be the first choice,
    and it plans every new shape for a second or more. Nearly every pack is a new shape. FlashAttention and the others
    take them at once.

    Args:
        model: any transformers model.
        name: the implementation; another one than `NAME` gives a model its own attention back.

    Returns:
        The implementation that was in use.
    """
    register()
    torch.backends.cuda.enable_cudnn_sdp(False)
    before = None
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            before = before or config._attn_implementation
            config._attn_implementation = name
    return before


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    qdpo_pack: Pack | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, in the signature of transformers' attention functions.

    Args:
        module: the layer's attention module.
        query: (1, H, N, D).
        key: (1, H_kv, N, D).
        value: (1, H_kv, N, D).
        attention_mask: not used for a pack; a (1, 1, 1, 1) dummy keeps transformers from building an N x N one.
        scaling: factor of the scores; None is 1/sqrt(D).
        dropout: attention dropout; 0 in the models that are trained here.
        sliding_window: tokens that a query sees, itself included, counted in positions.
        softcap: tanh soft-capping of the scores (Gemma 2).
        qdpo_pack: the pack; None for an ordinary pass.

    Returns:
        (1, N, H, D) and None (no attention weights).
    """
    if qdpo_pack is None:
        return _ordinary(module, query, key, value, attention_mask, scaling, dropout, softcap, kwargs), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if qdpo_pack.n_tokens >= LOOP_FROM * qdpo_pack.n_pairs:
        return _looped(query, key, value, qdpo_pack, scale, sliding_window, softcap), None
    return _batched(query, key, value, qdpo_pack, scale, sliding_window, softcap), None


def _ordinary(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    kwargs: dict[str, Any],
) -> Tensor:
    """Attention of a pass without a pack: transformers' SDPA, and its eager formula where scores are soft-capped."""
    if softcap is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)[0]
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if mask is None and query.shape[2] != key.shape[2]:
        # with a cache, plain causal is aligned at the lower right
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        mask = mask.tril(key.shape[2] - query.shape[2])
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return _attend(query, key, value, mask, scale, softcap).transpose(1, 2).contiguous()


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    """Scaled dot-product attention; `mask` None is causal."""
    if softcap is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale)
    scores = softcap * torch.tanh(query @ key.transpose(-1, -2) * (scale / softcap))
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value


def _looped(
    query: Tensor, key: Tensor, value: Tensor, pack: Pack, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    outputs = []
    for segment in pack.segments:
        own = slice(segment.start, segment.start + segment.length)
        k, v = key[:, :, own], value[:, :, own]
        if segment.prefix_length:
            prefix = slice(segment.prefix_start, segment.prefix_start + segment.prefix_length)
            k, v = torch.cat([key[:, :, prefix], k], 2), torch.cat([value[:, :, prefix], v], 2)
        mask = _segment_mask(pack, segment, window, query, softcap)
        outputs.append(_attend(query[:, :, own], k, v, mask, scale, softcap))
    return torch.cat(outputs, 2).transpose(1, 2).contiguous()


def _segment_mask(
    pack: Pack, segment: Segment, window: int | None, query: Tensor, softcap: float | None
) -> Tensor | None:
    """(length, prefix + length) mask, causal from the lower right, or None where plain causal is the same.

    Within [prefix | own] the distance in the row is the distance in positions, so a window needs no more than this.
    """
    total = segment.prefix_length + segment.length
    if window is not None and total <= window:
        window = None
    if segment.prefix_length == 0 and window is None:
        return None
    place = ("segment", segment.prefix_length, segment.length, window, query.dtype)
    if place not in pack.cache:
        positions = torch.arange(total, device=query.device)
        distance = positions[segment.prefix_length :, None] - positions
        mask = distance >= 0
        pack.cache[place] = _as_taken(mask if window is None else mask & (distance < window), query.dtype, softcap)
    return pack.cache[place]


def _as_taken(mask: Tensor, dtype: torch.dtype, softcap: float | None) -> Tensor:
    """A bool mask in the form that the attention takes at no further cost.

    Memory-efficient attention adds a mask of the scores' type, with strides that are multiples of 8, and would turn any
    other one into that anew in every layer (ATen's transformers/attention.cpp). The formula with soft-capping takes
    bool.
    """
    if softcap is not None:
        return mask
    width = mask.shape[-1]
    bias = torch.zeros(*mask.shape[:-1], -(-width // 8) * 8, dtype=dtype, device=mask.device)[..., :width]
    return bias.masked_fill_(~mask, float("-inf"))


def _batched(
    query: Tensor, key: Tensor, value: Tensor, pack: Pack, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    rows = [t[0].transpose(0, 1) for t in (query, key, value)]  # (N, H, D)
    outputs = []
    for number, group in enumerate(_groups(pack, query.device)):
        place = ("mask", number, window, query.dtype)
        if place not in pack.cache:
            mask = group.mask(window)
            pack.cache[place] = None if mask is None else _as_taken(mask, query.dtype, softcap)
        outputs.append(_of_group(rows, group, pack.cache[place], scale, softcap))
    return torch.cat(outputs).index_select(0, pack.cache["order"])[None]


def _of_group(rows: list[Tensor], group: _Group, mask: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """(B * L, H, D) attention of a group; its padded queries, keys and values are gone when this returns."""
    queries, keys, values = (
        t.index_select(0, places.reshape(-1)).view(len(places), -1, *t.shape[1:]).transpose(1, 2)
        for t, places in zip(rows, (group.queries, group.keys, group.keys), strict=True)
    )
    attended = _attend(queries, keys, values, mask, scale, softcap)
    # values may be narrower than queries (multi-head latent attention)
    return attended.transpose(1, 2).reshape(-1, *attended.shape[1::2])


@dataclass(frozen=True)
class _Group:
    """Segments of one kind as a padded batch of B rows.

    Attributes:
        queries: (B, L) places in the packed row; padding repeats the last token.
        keys: (B, P + L) places of [prefix, padded on the left | own].
        prefixes: (B, 1) tokens of each segment's prefix.
    """

    queries: Tensor
    keys: Tensor
    prefixes: Tensor

    def mask(self, window: int | None) -> Tensor | None:
        """(B, 1, L, P + L) bool: which keys a query sees; None where plain causal is the same."""
        longest, width = self.queries.shape[1], self.keys.shape[1]
        prefix = width - longest
        if prefix == 0 and (window is None or longest <= window):
            return None
        columns = torch.arange(width, device=self.keys.device)
        # the prefix is right-aligned, so that distances to the completion are distances in positions
        distance = columns[prefix:, None] - columns
        visible = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        return (visible & (columns >= prefix - self.prefixes)[:, None])[:, None]


def _groups(pack: Pack, device: torch.device) -> list[_Group]:
    """The prefixes and the completions as padded batches; where their rows go is left in the pack's cache (`order`).

    All of it is worked out on the host and sent in one copy.
    """
    if "groups" not in pack.cache:
        kinds = [[s for s in pack.segments if not s.prefix_length], [s for s in pack.segments if s.prefix_length]]
        parts: list[Tensor] = []
        order = torch.empty(pack.n_tokens, dtype=torch.long)
        begin = 0
        for segments in filter(None, kinds):
            start, length, prefix_start, prefixes = (
                torch.tensor([getattr(s, name) for s in segments])[:, None]
                for name in ("start", "length", "prefix_start", "prefix_length")
            )
            own, before = torch.arange(int(length.max())), torch.arange(int(prefixes.max()))
            queries = start + torch.minimum(own, length - 1)
            aligned = prefix_start + torch.clamp(before - (len(before) - prefixes), min=0)
            real = own < length
            order[queries[real]] = begin + torch.arange(queries.numel()).view_as(queries)[real]
            begin += queries.numel()
            parts += [queries, torch.cat([aligned, queries], 1), prefixes]
        *moved, pack.cache["order"] = all_to_device([*parts, order], device)
        pack.cache["groups"] = [_Group(*moved[i : i + 3]) for i in range(0, len(moved), 3)]
    return pack.cache["groups"]
