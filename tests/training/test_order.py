"""The order of the pairs depends on seed and epoch alone, and only what a run looks at is asked of the reference."""

from __future__ import annotations

import pytest

from qdpo.training.order import permutation, visited


def test_an_epoch_visits_every_pair_once() -> None:
    assert sorted(permutation(100, seed=7, epoch=3)) == list(range(100))


def test_the_order_depends_on_seed_and_epoch() -> None:
    orders = {tuple(permutation(50, seed, epoch)) for seed, epoch in ((0, 0), (0, 1), (5, 0), (5, 1))}
    assert len(orders) == 4
    assert permutation(50, 5, 1) == permutation(50, 5, 1)


@pytest.mark.parametrize(
    ("n", "batch", "steps"), [(44, 8, 3), (44, 8, 5), (44, 8, 6), (44, 8, 20), (3, 8, 1), (3, 8, 2)]
)
def test_visited_names_exactly_the_pairs_that_the_batches_hold(n: int, batch: int, steps: int) -> None:
    seen: set[int] = set()
    per_epoch = max(n // batch, 1)
    for step in range(steps):
        epoch, position = divmod(step, per_epoch)
        seen |= set(permutation(n, 1, epoch)[position * batch : (position + 1) * batch])
    wanted = visited(n, 1, batch, steps)
    assert wanted == sorted(set(wanted))
    assert seen <= set(wanted)
    if steps <= per_epoch:
        assert seen == set(wanted)
