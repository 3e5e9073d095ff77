"""The packed row's attention as an explicit mask, for models whose attention cannot be exchanged.

N x N entries per kind of layer: right for every model that takes a 4-D mask, and slow and large for long rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qdpo.engine.layout import Pack


def dense_mask(pack: Pack, window: int | None, device: torch.device) -> Tensor:
    """(1, 1, N, N) bool: who sees whom.

    Args:
        pack: the row.
        window: tokens that a query sees, itself included, counted in positions; None sees all.
        device: where it is made.
    """
    place = ("dense", window)
    if place not in pack.cache:
        mask = torch.zeros(pack.n_tokens, pack.n_tokens, dtype=torch.bool, device=device)
        for s in pack.segments:
            own = slice(s.start, s.start + s.length)
            mask[own, s.prefix_start : s.prefix_start + s.prefix_length] = True
            mask[own, own] = torch.ones(s.length, s.length, dtype=torch.bool, device=device).tril()
        if window is not None:
            positions = pack.position_ids[0].to(device)
            mask &= positions[:, None] - positions[None] < window
        pack.cache[place] = mask[None, None]
    return pack.cache[place]


def masks_for(model: nn.Module, pack: Pack, *, by_layer_type: bool) -> Tensor | dict[str, Tensor]:
    """The mask of a row as a model takes it: one, or one per kind of layer where windows and full attention mix."""
    config: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    window = getattr(config, "sliding_window", None)
    device = pack.input_ids.device

    def made(sliding: bool) -> Tensor:
        mask = dense_mask(pack, window if sliding else None, device)
        if config._attn_implementation != "eager":
            return mask
        # eager attention adds its mask to the scores
        dtype = model.get_input_embeddings().weight.dtype  # type: ignore[operator]
        return torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill_(~mask, torch.finfo(dtype).min)

    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or []))
    if by_layer_type:
        return {kind: made("sliding" in kind) for kind in kinds}
    return made(bool(window) and (not kinds or all("sliding" in kind for kind in kinds)))
