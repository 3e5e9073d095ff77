"""The order in which pairs are visited: a permutation per epoch that depends on the seed and the epoch alone."""

from __future__ import annotations

from functools import lru_cache

import torch

from qdpo.config.steps import steps_per_epoch


@lru_cache(maxsize=2)
def permutation(n: int, seed: int, epoch: int) -> list[int]:
    """The order of n pairs in one epoch; not to be changed."""
    generator = torch.Generator().manual_seed(seed + epoch)
    return torch.randperm(n, generator=generator).tolist()


def visited(n: int, seed: int, pairs_per_step: int, steps: int) -> list[int]:
    """The pairs that a run of `steps` optimizer steps looks at, in ascending order."""
    if steps > steps_per_epoch(n, pairs_per_step):
        # a second epoch shuffles what the first left over into its own steps
        return list(range(n))
    return sorted(permutation(n, seed, 0)[: steps * pairs_per_step])
