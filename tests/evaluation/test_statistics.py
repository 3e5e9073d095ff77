"""Intervals and tests against published values, and against counting everything."""

import itertools

import numpy as np
import pytest

from qdpo.evaluation import statistics


# Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), table I,
# method 3 (score, without continuity correction).
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_newcombes_table(successes: int, n: int, low: float, high: float) -> None:
    found = statistics.wilson(successes, n)
    assert found.value == successes / n
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_symmetric_and_holds_the_share() -> None:
    for n in (1, 2, 7, 1000):
        for successes in {0, 1, n // 2, n}:
            one, other = statistics.wilson(successes, n), statistics.wilson(n - successes, n)
            assert one.low <= one.value <= one.high
            assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low), abs=1e-12)
    with pytest.raises(ValueError, match="3 successes of 2"):
        statistics.wilson(3, 2)
    with pytest.raises(ValueError, match="0 successes of 0"):
        statistics.wilson(0, 0)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 9), (9, 3), (5, 5), (0, 8), (7, 4)])
def test_mcnemar_counts_the_splits_that_are_as_uneven(gained: int, lost: int) -> None:
    n = gained + lost
    splits = [sum(coins) for coins in itertools.product((0, 1), repeat=n)]
    as_uneven = sum(abs(2 * heads - n) >= abs(gained - lost) for heads in splits)
    assert statistics.mcnemar_exact(gained, lost) == pytest.approx(as_uneven / 2**n)


def test_mcnemar_of_many_pairs_is_a_number() -> None:
    assert statistics.mcnemar_exact(6000, 3000) < 1e-200
    assert 0.3 < statistics.mcnemar_exact(5050, 4950) < 0.4


def test_bootstrap_covers_the_mean_about_95_times_in_100() -> None:
    draw = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        sample = draw.exponential(2.0, 60)
        (found,) = statistics.bootstrap_ratios(sample[:, None], np.ones((60, 1)))
        covered += found.low <= 2.0 <= found.high
        assert found.value == pytest.approx(sample.mean())
    assert 87 <= covered <= 100


def test_bootstrap_of_ratios_is_weighted_and_the_same_each_time() -> None:
    totals, weights = np.array([[1.0, 1.0], [4.0, 5.0], [9.0, 3.0]]), np.array([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])
    ratio, mean = statistics.bootstrap_ratios(totals, weights)
    assert ratio.value == pytest.approx(14 / 6)
    assert mean.value == pytest.approx(3.0)
    assert [ratio, mean] == statistics.bootstrap_ratios(totals, weights)
    assert 1.0 <= ratio.low <= ratio.high <= 3.0


def test_one_pair_has_no_interval_and_none_is_an_error() -> None:
    (found,) = statistics.bootstrap_ratios(np.array([[3.0]]), np.array([[2.0]]))
    assert found.as_dict() == {"value": 1.5, "low": None, "high": None}
    with pytest.raises(ValueError, match="nothing to average"):
        statistics.bootstrap_ratios(np.empty((0, 1)), np.empty((0, 1)))


def test_compare_shares_counts_pairs() -> None:
    first = np.array([True, True, False, False, False])
    second = np.array([True, False, True, True, False])
    found = statistics.compare_shares(first, second)
    assert (found["base"]["value"], found["policy"]["value"]) == (0.4, 0.6)
    assert (found["gained"], found["lost"], found["p_value"]) == (2, 1, 1.0)


def test_correlation_needs_something_that_varies() -> None:
    assert statistics.correlation(np.arange(5), -np.arange(5)) == pytest.approx(-1.0)
    assert statistics.correlation(np.ones(5), np.arange(5)) is None
