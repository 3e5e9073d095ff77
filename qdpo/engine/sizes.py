"""Sizes that the engine goes by, without torch: the planner reads them too, and `qdpo plan` must not import it."""

from __future__ import annotations

from collections.abc import Sequence

CHUNK_ROWS = 256
"""Rows that the output head scores at once."""

TILE = {"cpu": 2**18, "cuda": 2**23}
"""Logits that exist at once. 1 MB of fp32 stays near a CPU; a GPU takes 256 rows of 32,768 in one product."""

LOOP_FROM = 192
"""Packed tokens per pair from which attention's loop over segments beats its padded batch (measured on a CPU: 40 ->
batch by 1.09x, 600 -> loop by 1.04x)."""

PROBED = ((25, 9, 14), (8, 17, 5))
"""Tokens of prompt, chosen and rejected of the two pairs that the start-up probe and the gradient check run."""


def first_fit(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Group sizes so that no group exceeds the budget, except a single one that does so alone: first-fit decreasing
    (Johnson 1973).

    Args:
        sizes: of what is to be grouped.
        budget: of a group.

    Returns:
        Groups of positions in `sizes`, the group with the largest first.
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        for group, free in enumerate(room):
            if sizes[i] <= free:
                groups[group].append(i)
                room[group] -= sizes[i]
                break
        else:
            groups.append([i])
            room.append(budget - sizes[i])
    return groups


def rows_at_once(rows: int, prompt: int, new_tokens: int, budget: int) -> int:
    """How many prompts are answered as one batch: as many as have no more than `budget` tokens in their cache.

    Args:
        rows: prompts there are.
        prompt: tokens of the longest.
        new_tokens: tokens of an answer at the most.
        budget: tokens of a pass without gradients, packing.tokens_without_grad.
    """
    return max(1, min(rows, budget // (prompt + new_tokens)))
