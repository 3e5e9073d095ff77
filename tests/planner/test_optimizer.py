"""Which AdamW a run takes, and why."""

from __future__ import annotations

import pytest

from qdpo.hardware import GIB
from qdpo.planner.optimizer import AUTO, choose_optimizer

SEVEN_B = 41_943_040
"""Weights of an adapter of rank 16 on seven projections of a 7B base."""
STATE = 8 * SEVEN_B


@pytest.mark.parametrize(
    ("free", "kind", "scaled", "name", "words"),
    [
        (STATE, "cuda", False, "adamw_torch_fused", "both moments are 0.31 GiB and fit beside the rest"),
        (STATE - 1, "cuda", False, "paged_adamw_32bit", "and 0.31 GiB are free beside the rest"),
        (-5e9, "cuda", False, "paged_adamw_32bit", "and 0.00 GiB are free beside the rest"),
        # torch's unfused one takes as much again for a moment
        (2 * STATE, "cuda", True, "adamw_torch", "fit beside the rest"),
        (2 * STATE - 1, "cuda", True, "paged_adamw_32bit", "0.62 GiB are free"),
        (500 * GIB, "cpu", False, "adamw_torch", "paging needs CUDA"),
    ],
)
def test_paged_only_where_memory_is_what_lacks(free: float, kind: str, scaled: bool, name: str, words: str) -> None:
    chosen = choose_optimizer(AUTO, SEVEN_B, free, kind, scaled=scaled)
    assert chosen.name == name
    assert words in chosen.reason


@pytest.mark.parametrize("name", ["paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit", "adamw_torch"])
def test_what_is_set_is_taken(name: str) -> None:
    for kind, scaled in (("cuda", True), ("cuda", False), ("cpu", False)):
        chosen = choose_optimizer(name, SEVEN_B, 0, kind, scaled=scaled)
        assert (chosen.name, chosen.reason) == (name, "set by train.optim")


def test_the_fused_one_is_not_taken_with_scaled_losses() -> None:
    assert choose_optimizer("adamw_torch_fused", SEVEN_B, 0, "cuda", scaled=False).name == "adamw_torch_fused"
    chosen = choose_optimizer("adamw_torch_fused", SEVEN_B, 0, "cuda", scaled=True)
    assert (chosen.name, chosen.reason) == ("adamw_torch", "the fused one hides steps that fp16's scaler skips")
