"""Scoring many pairs and texts: order, budget, mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine.toys import build, make_pairs, separate_logps

from qdpo.engine import attention
from qdpo.engine.engine import Engine, text_nll

CPU = torch.device("cpu")


def make_engine(name: str = "llama") -> tuple[Engine, Any]:
    model = build(name, torch.float32)
    attention.install(model)
    return Engine(model, CPU), model


@pytest.mark.parametrize("budget", [1, 25, 40, 10_000])
def test_scores_come_back_in_the_order_of_the_pairs(budget: int) -> None:
    engine, model = make_engine()
    pairs = make_pairs(1) + make_pairs(2)
    scores = engine.score_all(pairs, budget)
    torch.testing.assert_close(scores.logps, separate_logps(model, pairs), rtol=1e-5, atol=1e-4)
    assert scores.tokens.tolist() == [len(p.chosen) for p in pairs] + [len(p.rejected) for p in pairs]


def test_nothing_carries_a_gradient_and_the_mode_comes_back() -> None:
    engine, model = make_engine()
    model.train()
    scores = engine.score_all(make_pairs(), 1000)
    assert not scores.logps.requires_grad
    assert model.training


def test_no_pairs() -> None:
    engine, _ = make_engine()
    assert engine.score_all([], 100).logps.shape == (0,)


def test_text_nll_is_the_mean_over_all_tokens_but_the_first() -> None:
    engine, model = make_engine()
    texts = [[1, 5, 6, 7, 8], [1, 9], [1, *range(20, 40)]]
    total = sum(
        torch.nn.functional.cross_entropy(model(input_ids=torch.tensor([t])).logits[0, :-1], torch.tensor(t[1:])).item()
        * (len(t) - 1)
        for t in texts
    )
    assert text_nll(engine, texts, 12) == pytest.approx(total / sum(len(t) - 1 for t in texts), rel=1e-5)
