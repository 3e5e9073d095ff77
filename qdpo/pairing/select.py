"""A part of a large set of pairs: what is left out, and why.

Rows that cannot be used and, if asked for, pairs that are almost the same as an earlier one are left out first. The
others are put in an order by one criterion or several; several are combined as in Deng et al., "Less is More: Improving
LLM Alignment via Preference Data Selection" (arXiv 2502.14560), which multiplies the odds that its measures give to a
preference (the score margin of the data, and the implicit margin of a briefly trained policy over its reference). The
paper maps margins to probabilities on a line between two bounds that must be tuned; here a pair's probability is the
share of pairs that it surpasses, so that scores, lengths and log-probabilities need no common scale. Which end of the
implicit margin helps is disputed: Qi et al. (arXiv 2508.04149) keep the pairs with the smallest one, `new`.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qdpo.errors import DataError, UsageError
from qdpo.grammar import counted
from qdpo.pairing.measure import Measured

CRITERIA = ("length", "score", "base", "hard", "run", "new", "random", "duplicates")
"""What pairs can be chosen by (`qdpo pairs select --help` says what each means); `duplicates` is no order."""
ASKS = {"base": "base", "hard": "base", "run": "run", "new": "run"}
"""The margin, a field of `Measured`, that a criterion needs a model for."""
SHARE = 0.3
"""What is kept where nothing is said, of pairs that are put in an order."""

UNUSABLE, TWIN, UNSCORED, LOWER = "cannot be used", "double of an earlier row", "without scores", "ranked lower"
"""Why a row is left out."""


@dataclass(frozen=True)
class LeftOut:
    """A row that is not kept.

    Attributes:
        row: its number in the file, see `Measured.rows`.
        kind: `UNUSABLE`, `TWIN`, `UNSCORED` or `LOWER`.
        why: in words.
        values: its measures, where it was put in an order.
    """

    row: int
    kind: str
    why: str
    values: dict[str, float]


@dataclass(frozen=True)
class Selection:
    """Which rows of a file are kept.

    Attributes:
        measured: what was known of the pairs.
        by: the criteria.
        asked: pairs that were to be kept.
        rows: numbers of those that are, rising.
        left_out: the others, in the file's order.
    """

    measured: Measured
    by: tuple[str, ...]
    asked: int
    rows: np.ndarray
    left_out: list[LeftOut]

    @property
    def counts(self) -> dict[str, int]:
        """Rows left out by kind; those that cannot be used by their reason."""
        kinds = (f"{left.kind}: {left.why}" if left.kind == UNUSABLE else left.kind for left in self.left_out)
        return dict(Counter(kinds).most_common())


def check(by: Sequence[str]) -> tuple[str, ...]:
    """The criteria, each once.

    Raises:
        UsageError: one is unknown, or two contradict each other.
    """
    unknown = [name for name in by if name not in CRITERIA]
    if unknown:
        close = difflib.get_close_matches(unknown[0], CRITERIA, n=1)
        guess = f"did you mean `{close[0]}`? " if close else ""
        raise UsageError(f"there is no criterion {unknown[0][:40]!r}", f"{guess}criteria: {', '.join(CRITERIA)}")
    names = tuple(dict.fromkeys(by))
    for ends in (("base", "hard"), ("run", "new")):
        if set(ends) <= set(names):
            raise UsageError(f"`{ends[0]}` and `{ends[1]}` are one order from its two ends", "choose one of them")
    if "random" in names and set(names) - {"random", "duplicates"}:
        raise UsageError("`random` is no criterion beside another one", "leave it out; --seed only breaks ties then")
    return names


def select(measured: Measured, by: Sequence[str], keep: float | int | None = None, seed: int = 0) -> Selection:
    """Choose a part of the pairs; the same input gives the same part.

    Args:
        measured: with the margins that `by` needs.
        by: of `CRITERIA`.
        keep: a share of the usable pairs (a fraction up to 1.0), or how many (an int); None keeps `SHARE`, or
            everything where only doubles are left out.
        seed: breaks ties, and is the order where there is no criterion.

    Raises:
        UsageError: a criterion is unknown, or `keep` makes no sense.
        DataError: the file has no scores, or fewer pairs than are to be kept.
    """
    names = check(by)
    orders = [name for name in names if name not in ("random", "duplicates")]
    n = len(measured.rows)
    if keep is None and names == ("duplicates",):
        keep = n - len(measured.twins)
    asked = _how_many(SHARE if keep is None else keep, n, measured.source)
    twin = np.isin(measured.rows, list(measured.twins)) & ("duplicates" in names)
    values = {name: _values(measured, name) for name in orders}
    known = np.ones(n, bool)
    for column in values.values():
        known &= ~np.isnan(column)
    ranked = np.flatnonzero(~twin & known)
    odds = sum((_log_odds(column[ranked]) for column in values.values()), np.zeros(len(ranked)))
    ties = np.random.default_rng(seed).permutation(n)[ranked]
    order = ranked[np.lexsort((ties, -odds))]
    place_of = {int(at): place for place, at in enumerate(order, 1)}
    kept = np.sort(order[:asked])
    left_out = [LeftOut(row, UNUSABLE, why, {}) for row, why in measured.faults.items()]
    for at in np.setdiff1d(np.arange(n), kept):
        row = int(measured.rows[at])
        found = {name: round(float(column[at]), 6) for name, column in values.items() if not np.isnan(column[at])}
        if twin[at]:
            left_out.append(LeftOut(row, TWIN, f"almost the same as {measured.unit} {measured.twins[row]}", found))
        elif not known[at]:
            left_out.append(LeftOut(row, UNSCORED, "the row has no two scores", found))
        else:
            by_what = " and ".join(orders) or "random"
            why = f"place {place_of[int(at)]:,} of {len(ranked):,} by {by_what}, {len(kept):,} are kept"
            left_out.append(LeftOut(row, LOWER, why, found))
    return Selection(measured, names, asked, measured.rows[kept], sorted(left_out, key=lambda left: left.row))


def parse_keep(text: str) -> float | int:
    """`0.3` and `30%` are shares, `300` is a number of pairs.

    Raises:
        UsageError: it is none of these.
    """
    given = text.strip().replace(",", "").replace("_", "")
    try:
        if given.endswith("%"):
            return float(given[:-1]) / 100
        return float(given) if "." in given else int(given)
    except ValueError:
        raise UsageError(
            f"--keep {text!r} is no share and no number", "a share is --keep 0.3 or 30%, a number of pairs --keep 300"
        ) from None


def _how_many(keep: float | int, n: int, source: str) -> int:
    """How many of n pairs a share or a number is."""
    if isinstance(keep, float):
        if not 0 < keep <= 1:
            raise UsageError(
                f"--keep {keep:g} is no share", "a share lies between 0 and 1: --keep 0.3; a number has no point"
            )
        return max(1, round(keep * n))
    if keep < 1:
        raise UsageError(f"--keep {keep} keeps nothing", "give a number from 1, or a share such as 0.3")
    if keep > n:
        raise DataError(
            f"--keep {keep:,}: {source} has {counted(n, 'usable pair')}", "give fewer, or a share such as 0.3"
        )
    return keep


def _values(measured: Measured, name: str) -> np.ndarray:
    """(n,) what pairs are put in an order by, the highest first.

    Raises:
        DataError: the file has no scores.
    """
    if name == "score":
        if np.isnan(measured.scores).all():
            raise DataError(
                f"{measured.source} rates no answers: no row has scores of both",
                "name the columns: --set 'data.columns={score_chosen: YOURS, score_rejected: YOURS}', or choose by "
                "something else",
            )
        return measured.scores[:, 0] - measured.scores[:, 1]
    if name == "length":
        chosen, rejected = measured.characters.T
        return -np.abs(chosen - rejected) / np.maximum(chosen, rejected)
    column = getattr(measured, ASKS[name])
    return np.asarray(-column if name in ("hard", "new") else column)


def _log_odds(values: np.ndarray) -> np.ndarray:
    """(n,) log-odds of the share of pairs that each surpasses; equal values count half."""
    if not len(values):
        return values
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    below = np.cumsum(count) - count
    share = (below + count / 2)[place] / len(values)
    return np.log(share) - np.log1p(-share)
