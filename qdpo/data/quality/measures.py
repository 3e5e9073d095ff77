"""What the records of pairs tell together: lengths, doubles, contradictions, answers that are always the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from qdpo.data.counts import FIRST_ROWS
from qdpo.data.quality.separable import FEWEST

CONSTANT_OFTEN = 0.1
"""Share of pairs with the same answer on one side from which it is counted."""


def length_bias(chosen: np.ndarray, rejected: np.ndarray) -> dict[str, float]:
    """How much length tells: shares of pairs whose chosen is longer or as long, and the AUC over all answers.

    The AUC is the chance that a chosen answer, drawn at random, is longer than a rejected one drawn at random, ties
    counted half (Mann and Whitney 1947).
    """
    ordered = np.sort(rejected)
    below = np.searchsorted(ordered, chosen, "left").astype(float)
    upto = np.searchsorted(ordered, chosen, "right").astype(float)
    return {
        "chosen_longer": float(np.mean(chosen > rejected)),
        "as_long": float(np.mean(chosen == rejected)),
        "auc": float(np.mean((below + upto) / 2) / len(rejected)),
    }


def histogram(lengths: np.ndarray) -> dict[str, list[int]]:
    """How many lengths (ascending) are in bins that double, and the edges of these."""
    edges = [0, 1]
    while edges[-1] <= lengths[-1]:
        edges.append(edges[-1] * 2)
    counts, _ = np.histogram(lengths, edges)
    return {"edges": edges, "counts": counts.tolist()}


def exact_duplicates(records: np.ndarray) -> dict[str, Any]:
    """Pairs that are the same as an earlier one: how many, and the first rows."""
    keys = np.stack([records["chosen_key"], records["rejected_key"]], axis=1)
    _, first = np.unique(keys, axis=0, return_index=True)
    again = np.setdiff1d(np.arange(len(records)), first)
    return {"count": len(again), "first_rows": first_rows(records, again)}


def conflicts(records: np.ndarray) -> dict[str, Any]:
    """Pairs whose chosen answer is another pair's rejected answer to the same prompt: how many, and the first rows."""
    # The keys are of prompt and answer together.
    found = np.nonzero(np.isin(records["chosen_key"], records["rejected_key"]))[0]
    return {"count": len(found), "first_rows": first_rows(records, found)}


def most_frequent(records: np.ndarray, side: str) -> dict[str, Any]:
    """The answer that most pairs have on one side; empty where it is not in many."""
    answers, counts = np.unique(records[f"{side}_answer"], return_counts=True)
    if len(records) < FEWEST or counts.max() <= CONSTANT_OFTEN * len(records):
        return {}
    answer = answers[counts.argmax()]
    found = np.nonzero(records[f"{side}_answer"] == answer)[0]
    other = "rejected" if side == "chosen" else "chosen"
    return {
        "count": len(found),
        "first_rows": first_rows(records, found),
        other: int(np.count_nonzero(records[f"{other}_answer"] == answer)),
    }


def first_rows(records: np.ndarray, places: np.ndarray) -> list[int]:
    """Numbers of the rows at the first five places."""
    return [int(records["row"][place]) for place in places[:FIRST_ROWS]]
