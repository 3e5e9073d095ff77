"""Whether a run's first step went through the fused functions as often as its layers and passes say."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gpu.bases import Settings

from qdpo.engine.engine import Engine
from qdpo.training.recipe import Recipe

LORA_OUTSIDE_THE_MLP = 4
"""Adapted linear layers of a decoder layer beside its MLP's three, which are one function with it."""


@contextlib.contextmanager
def counted_passes() -> Iterator[list[int]]:
    """Counts the passes with gradients of each training step of the runs inside; tries before them are none."""
    counts: list[int] = []
    step, score = Recipe.step, Engine.score
    in_step = False

    def counted_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal in_step
        counts.append(0)
        in_step = True
        try:
            return step(self, *args, **kwargs)
        finally:
            in_step = False

    def counted_score(self: Any, *args: Any) -> Any:
        if in_step and torch.is_grad_enabled():
            counts[-1] += 1
        return score(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recipe, "step", counted_step)
        patch.setattr(Engine, "score", counted_score)
        yield counts


def faults_in(record: dict[str, Any], base: Settings, passes: int) -> list[str]:
    """What the first step of a run did otherwise than promised.

    Args:
        record: its run.json.
        base: configuration of its base, all seven projections of which are adapted.
        passes: with gradients, of the first step.

    Returns:
        One sentence each; none where every layer ran fused as often as it had to, and in the compute type only.
    """
    engine, compute = record["engine"], record["dtype"]["compute"]
    used = engine["used"]
    # a layer that is computed twice runs forward twice
    runs = passes * (base["num_hidden_layers"] + engine["checkpointed_layers"])
    promised = {"lora": LORA_OUTSIDE_THE_MLP * runs, "mlp": runs}
    found = [f"{used['plain']} ran outside of their fused functions"] if used["plain"] else []
    if used["fused"] != promised:
        found.append(f"fused calls: {used['fused']}, and {promised} are {passes} passes")
    # The logits' products take the compute type too: only their result is fp32.
    if set(used["products"]) != {compute}:
        found.append(f"products: {used['products']}, and the run computes in {compute}")
    return found
