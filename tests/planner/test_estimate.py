"""The estimate is within 3 % of the tensors that really exist at the peak."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from planner.grid import ARCHITECTURES, BATCHES, Case, cases, compare, compare_scoring, policy_of

LIMIT = 0.03

cached_policy = cache(policy_of)


def check(case: Case) -> None:
    policy: Any = cached_policy(case.kind, case.rank)
    measured, estimated = compare(policy, case)
    error = estimated / measured - 1
    print(f"{case}: measured {measured:,}, estimated {estimated:,.0f}, {error:+.1%}")
    assert abs(error) <= LIMIT


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize(("batch", "checkpointed"), [(BATCHES[1], None), (BATCHES[2], 2)])
def test_a_sample_of_the_grid(kind: str, batch: tuple[int, int, int], checkpointed: int | None) -> None:
    check(Case(kind, 64, batch, checkpointed))


@pytest.mark.slow
@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_the_whole_grid(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@pytest.mark.parametrize("batch", BATCHES)
def test_passes_without_gradients(kind: str, batch: tuple[int, int, int]) -> None:
    measured, estimated = compare_scoring(cached_policy(kind, 64), Case(kind, 64, batch, None))
    assert abs(estimated / measured - 1) <= LIMIT
