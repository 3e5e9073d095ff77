"""The estimate is within 10 % of the tensors that really exist at the peak."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from planner.grid import ARCHITECTURES, BATCHES, Case, cases, compare, compare_scoring, policy_of

from qdpo.planner.ledger import Ledger

LIMIT = 0.10

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


def test_the_ledger_knows_its_highest_level_and_of_what_it_was_made() -> None:
    ledger = Ledger()
    with ledger.phase("one"):
        ledger.hold(5)
        with ledger.kind("other"):
            ledger.briefly(10)
        ledger.drop(5)
    with ledger.phase("two"):
        ledger.hold(3)
    assert ledger.peaks == {"one": 15, "two": 3}
    assert ledger.kinds == {"activations": 5, "other": 10}
    assert ledger.level == 3
