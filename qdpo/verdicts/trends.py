"""Reading noisy curves: where a curve stands, how far it came, and how much of a change is only noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

LATE = 1 / 3
"""The share of a curve's points that its level is read from."""


def points(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """(step, value) of every row that has a finite number under a key, in order."""
    found = []
    for row in rows:
        value = row.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found.append((int(row["step"]), float(value)))
    return found


def values(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """The finite values under a key, in order."""
    return [value for _, value in points(rows, key)]


def level(series: Sequence[float], share: float = LATE) -> float | None:
    """The mean of the last share of a series (at least one point); None of an empty one."""
    if not series:
        return None
    return fmean(series[-max(1, round(len(series) * share)) :])


def smooth(series: Sequence[float]) -> list[float]:
    """Running medians of three points, of two at the ends: one wild point moves nothing by itself."""
    return [median(series[max(0, i - 1) : i + 2]) for i in range(len(series))]


def jitter(series: Sequence[float]) -> float:
    """The standard deviation of the noise around a smooth curve.

    From second differences, which a slow trend does not enter; their variance is six times the noise's. The median
    keeps single jumps out. 0 of fewer than four points.
    """
    bends = [abs(series[i] - 2 * series[i + 1] + series[i + 2]) for i in range(len(series) - 2)]
    return 1.4826 * median(bends) / math.sqrt(6) if len(bends) > 1 else 0.0


def share_rising(series: Sequence[float]) -> float:
    """The share of a series' points that are above the one before; 0 of fewer than two."""
    if len(series) < 2:
        return 0.0
    return sum(b > a for a, b in itertools.pairwise(series)) / (len(series) - 1)


def accuracy_noise(pairs: int | None) -> float:
    """Half of the 95 % interval of an accuracy near one half; 64 pairs where their number is not known."""
    return 1.96 * math.sqrt(0.25 / (pairs or 64))
