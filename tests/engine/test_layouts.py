"""First-fit decreasing: complete, within the budget, reproducible."""

from __future__ import annotations

import random

import pytest
from engine.toys import words

from qdpo.data.pairs import TokenPair
from qdpo.engine.layout import packed_tokens
from qdpo.engine.layouts import cut_packed as cut


def pairs_of(*lengths: int) -> list[TokenPair]:
    """Pairs that take so many packed tokens: answers of one token add none."""
    return [TokenPair(i, [1] * length, [2], [3]) for i, length in enumerate(lengths)]


def test_first_fit_decreasing() -> None:
    assert cut(pairs_of(5, 7, 3, 4, 1), 10) == [[1, 2], [0, 3, 4]]


def test_a_pair_above_the_budget_goes_alone() -> None:
    assert cut(pairs_of(3, 50, 4), 10) == [[1], [2, 0]]


def test_equal_sizes_keep_their_order() -> None:
    assert cut(pairs_of(4, 4, 4, 4), 8) == [[0, 1], [2, 3]]


def test_no_pairs_make_no_groups() -> None:
    assert cut([], 10) == []


@pytest.mark.parametrize("seed", range(20))
def test_every_pair_once_and_no_group_over_the_budget(seed: int) -> None:
    rng = random.Random(seed)
    pairs = [
        TokenPair(i, words(rng, rng.randint(1, 40)), words(rng, rng.randint(1, 20)), words(rng, rng.randint(1, 20)))
        for i in range(30)
    ]
    budget = rng.randint(30, 200)
    groups = cut(pairs, budget)
    assert sorted(i for group in groups for i in group) == list(range(30))
    for group in groups:
        assert len(group) == 1 or sum(packed_tokens(pairs[i]) for i in group) <= budget
    # a known bound of first-fit: no two groups could be one
    totals = [sum(packed_tokens(pairs[i]) for i in group) for group in groups]
    assert all(a + b > budget for i, a in enumerate(totals) for b in totals[i + 1 :])
