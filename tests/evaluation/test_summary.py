"""What is made of scores: by hand on few pairs, and a length preference that must not pass for more."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from qdpo.evaluation.scoring import PairScores
from qdpo.evaluation.statistics import wilson
from qdpo.evaluation.summary import length_matched, summarise
from qdpo.evaluation.view import only_length, sentences, tables


def scores(base: list, policy: list, tokens: list, kl: list | None = None) -> PairScores:
    parts = (base, policy, tokens, kl or [[0.0, 0.0]] * len(base))
    return PairScores(*(torch.tensor(part, dtype=torch.float64) for part in parts))


def test_values_by_hand() -> None:
    made = scores(
        base=[[-4.0, -3.0], [-2.0, -6.0], [-5.0, -5.0]],
        policy=[[-3.0, -5.0], [-3.0, -6.0], [-4.0, -8.0]],
        tokens=[[2, 4], [2, 2], [4, 2]],
        kl=[[0.2, 0.4], [0.2, 0.2], [0.4, 0.2]],
    )
    found = summarise(made, 0.5, adapted=True)
    group = found["groups"]["all"]
    # margins: 0.5 * (1 + 2), 0.5 * (-1 - 0), 0.5 * (1 + 3)
    assert group["reward_margin"]["value"] == pytest.approx((1.5 - 0.5 + 2.0) / 3)
    assert group["reward_accuracy"] == wilson(2, 3).as_dict()
    # the base prefers the chosen of the second pair only: a tie is no preference
    assert group["prefers_chosen"]["base"]["value"] == pytest.approx(1 / 3)
    assert group["prefers_chosen"]["policy"]["value"] == 1
    assert (group["prefers_chosen"]["gained"], group["prefers_chosen"]["lost"]) == (2, 0)
    assert group["logps_per_token"]["chosen"]["base"] == pytest.approx(-11 / 8)
    assert group["logps_per_token"]["chosen"]["change"]["value"] == pytest.approx(1 / 8)
    assert group["logps_per_token"]["rejected"]["change"]["value"] == pytest.approx(-5 / 8)
    assert group["kl_per_token"]["chosen"]["value"] == pytest.approx(0.1)
    assert {name: part and part["pairs"] for name, part in found["groups"].items()} == {
        "all": 3,
        "length_matched": 1,
        "chosen_longer": 1,
        "chosen_shorter": 1,
    }
    json.dumps(found, allow_nan=False)


def test_length_matched_is_within_a_tenth_or_one_token() -> None:
    chosen, rejected = np.array([3, 4, 100, 110, 112, 1]), np.array([4, 6, 110, 100, 100, 1])
    assert length_matched(chosen, rejected).tolist() == [True, False, True, True, False, True]


def preference(by_length: bool) -> dict:
    """400 pairs: the policy has moved towards the longer completion, or towards the chosen one."""
    draw = np.random.default_rng(0)
    n = 400
    chosen, rejected = draw.integers(20, 60, n), draw.integers(10, 40, n)
    rejected[:80] = chosen[:80]
    change = 0.05 * (chosen - rejected) if by_length else np.full(n, 2.0)
    policy = np.stack([change + draw.normal(0, 0.2, n), draw.normal(0, 0.2, n)], 1)
    made = scores(np.zeros((n, 2)).tolist(), policy.tolist(), np.stack([chosen, rejected], 1).tolist())
    return {"data": {"source": "x"}, **summarise(made, 1.0, adapted=True)}


def test_longer_wins_is_told_from_preference() -> None:
    fooled, real = preference(by_length=True), preference(by_length=False)
    for found in (fooled, real):
        assert found["groups"]["all"]["reward_accuracy"]["low"] > 0.7
    assert fooled["groups"]["length_matched"]["reward_accuracy"]["low"] < 0.5
    assert fooled["groups"]["chosen_shorter"]["reward_accuracy"]["high"] < 0.5
    assert fooled["length"]["margin_correlation"] > 0.9
    assert abs(real["length"]["margin_correlation"]) < 0.2
    assert "more than length" in str(only_length(fooled))
    assert only_length(real) is None


def test_a_base_alone_has_accuracy_only() -> None:
    made = scores([[-1.0, -2.0], [-3.0, -1.0]], [[-1.0, -2.0], [-3.0, -1.0]], [[1, 1], [2, 3]])
    found = {"data": {"source": "x"}, **summarise(made, 0.1, adapted=False)}
    assert set(found["groups"]["all"]) == {"pairs", "prefers_chosen", "logps_per_token"}
    assert found["groups"]["all"]["prefers_chosen"] == {"base": wilson(1, 2).as_dict()}
    assert tables(found)
    assert len(sentences(found)) == 1
