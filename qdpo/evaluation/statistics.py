"""Intervals and tests for what is counted and averaged over pairs; pairs are taken as independent.

Sources: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927); Efron and
Tibshirani, "An Introduction to the Bootstrap" (1993), ch. 13, percentile interval; McNemar, Psychometrika 12 (1947),
in its exact binomial form.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qdpo.intervals import wilson_interval

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval.

    Attributes:
        value: the estimate.
        low, high: the ends of its interval; None where one pair says nothing about it.
    """

    value: float
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, float | None]:
        """For JSON."""
        return asdict(self)


def wilson(successes: int, n: int) -> Estimate:
    """A share with Wilson's score interval (1927, without continuity correction).

    Raises:
        ValueError: n is 0, or the successes do not fit it.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes of {n}")
    share = successes / n
    return Estimate(share, *wilson_interval(share, n))


def bootstrap_ratios(totals: np.ndarray, weights: np.ndarray) -> list[Estimate]:
    """Ratios of sums, each with its percentile bootstrap interval (2,000 resamples of pairs, fixed seed).

    Args:
        totals: (n, k) k values per pair.
        weights: (n, k) what each value counts: 1 for a mean over pairs, its tokens for a mean over tokens.

    Raises:
        ValueError: there is no pair, or a column's weights sum to 0.
    """
    totals, weights = np.asarray(totals, np.float64), np.asarray(weights, np.float64)
    n = len(totals)
    if n == 0 or not weights.sum(0).all():
        raise ValueError("nothing to average")
    values = totals.sum(0) / weights.sum(0)
    if n == 1:
        return [Estimate(float(value), None, None) for value in values]
    draw = np.random.default_rng(SEED)
    ratios = np.empty((RESAMPLES, totals.shape[1]))
    for i in range(RESAMPLES):
        # one resample serves all columns
        counts = np.bincount(draw.integers(0, n, n), minlength=n)
        ratios[i] = (counts @ totals) / (counts @ weights)
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return [Estimate(float(v), float(lo), float(hi)) for v, lo, hi in zip(values, low, high, strict=True)]


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided exact McNemar test: the p-value of a split of the changed pairs at least this uneven by a fair coin.

    Args:
        gained: pairs that only the second model has right.
        lost: pairs that only the first model has right.
    """
    changed = gained + lost
    tail, term = 0, 1
    for i in range(min(gained, lost) + 1):
        tail += term
        term = term * (changed - i) // (i + 1)
    return min(1.0, 2 * tail / 2**changed)


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's correlation; None where one of the two does not vary."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if len(a) < 2 or not a.std() or not b.std():
        return None
    return float(np.corrcoef(a, b)[0, 1])


def compare_shares(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Two models' right and wrong answers on the same pairs.

    Args:
        first, second: (n,) whether each model is right.

    Returns:
        `base` and `policy` (Wilson), `gained`, `lost`, `p_value` (McNemar exact).
    """
    n = len(first)
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    return {
        "base": wilson(int(first.sum()), n).as_dict(),
        "policy": wilson(int(second.sum()), n).as_dict(),
        "gained": gained,
        "lost": lost,
        "p_value": mcnemar_exact(gained, lost),
    }
