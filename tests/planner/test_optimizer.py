"""Which AdamW a run takes, and why."""

from __future__ import annotations

import pytest

from qdpo.hardware import GIB
from qdpo.planner.optimizer import AUTO, choose_optimizer

SEVEN_B = 41_943_040
"""Weights of an adapter of rank 16 on seven projections of a 7B base."""
STATE = 8 * SEVEN_B


@pytest.mark.parametrize(
    ("free", "kind", "name", "words"),
    [
        (STATE, "cuda", "adamw_torch_fused", "both moments are 0.31 GiB and fit beside the rest"),
        (STATE - 1, "cuda", "paged_adamw_32bit", "and 0.31 GiB are free beside the rest"),
        (-5e9, "cuda", "paged_adamw_32bit", "and 0.00 GiB are free beside the rest"),
        (500 * GIB, "cpu", "adamw_torch", "paging needs CUDA"),
    ],
)
def test_paged_only_where_memory_is_what_lacks(free: float, kind: str, name: str, words: str) -> None:
    chosen = choose_optimizer(AUTO, SEVEN_B, free, kind)
    assert chosen.name == name
    assert words in chosen.reason


@pytest.mark.parametrize(
    "name", ["paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit", "adamw_torch", "adamw_torch_fused"]
)
def test_what_is_set_is_taken(name: str) -> None:
    for kind in ("cuda", "cpu"):
        chosen = choose_optimizer(name, SEVEN_B, 0, kind)
        assert (chosen.name, chosen.reason) == (name, "set by train.optim")
