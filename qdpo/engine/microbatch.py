"""Cutting pairs into packs by a token budget: first-fit decreasing (Johnson 1973)."""

from __future__ import annotations

from collections.abc import Sequence

from qdpo.data.pairs import TokenPair
from qdpo.engine.layout import packed_tokens
from qdpo.engine.sizes import first_fit


def cut(pairs: Sequence[TokenPair], budget: int) -> list[list[int]]:
    """Group pairs so that no group exceeds the budget, except a single pair that does so alone.

    Args:
        pairs: what to group.
        budget: packed tokens per group.

    Returns:
        Groups of positions in `pairs`, the group with the longest pair first.
    """
    return first_fit([packed_tokens(pair) for pair in pairs], budget)
