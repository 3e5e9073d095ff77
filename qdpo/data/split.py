"""A held-out part of the pairs: never a prompt, or one that is almost the same, on both sides."""

from __future__ import annotations

import random

import numpy as np

from qdpo.errors import DataError
from qdpo.grammar import counted


def split_keys(records: np.ndarray) -> np.ndarray:
    """(n,) by which a held-out part is cut off: one for prompts that are equal up to case, white space and form."""
    _, group = np.unique(records["loose_key"], return_inverse=True)
    smallest = np.full(len(records), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, group, records["prompt_key"])
    return smallest[group]


def split_by_prompt(
    keys: np.ndarray, fraction: float, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a held-out share so that no prompt is on both sides, and no group of prompts; seeded.

    A group with more prompts than are left to be held out stays in training. Where all have more, the smallest one is
    held out; where that is more than half of the prompts, groups are not looked at.

    Args:
        keys: hash of each pair's prompt.
        fraction: share of the different prompts that is held out, at least one.
        seed: decides which.
        groups: what the prompts of each pair that are almost the same have in common; None where none are.

    Returns:
        The places of the training pairs and of the held-out pairs, ascending.

    Raises:
        DataError: there are too few different prompts to have both sides.
    """
    prompts, first = np.unique(keys, return_index=True)
    count = max(1, round(fraction * len(prompts)))
    if count >= len(prompts):
        pairs, different = counted(len(keys), "pair has", "pairs have"), counted(len(prompts), "different prompt")
        raise DataError(
            f"{pairs} {different}: too few to hold some out",
            "give a held-out set with data.eval_name or data.eval_split",
        )
    order = list(range(len(prompts)))
    random.Random(seed).shuffle(order)
    held: list[int] = []
    if groups is not None:
        members: dict[int, list[int]] = {}
        for place in order:
            members.setdefault(int(groups[first[place]]), []).append(place)
        for group in members.values():
            held += group if len(held) + len(group) <= count else []
        smallest = min(members.values(), key=len)
        held = held or (smallest if len(smallest) <= len(prompts) / 2 else [])
    mask = np.isin(keys, prompts[held or order[:count]])
    return np.nonzero(~mask)[0], np.nonzero(mask)[0]
