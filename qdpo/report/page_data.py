"""What the report page's script draws: curves and scored pairs, bounded in number and length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdpo.evaluation.written import fault_finder
from qdpo.report import markdown as md
from qdpo.report.facts import Facts
from qdpo.run.record import all_ties
from qdpo.verdicts.trends import points

POINTS = 1500
"""Points of a curve at the most; of a longer one every n-th is drawn."""

PAIRS, CHARACTERS = 400, 2000
"""Pairs with their texts at the most, and characters of each text."""

SAMPLES, BROKEN = 8, 4
"""Answered prompts of an evaluation at the most, and how many of them for being broken."""

PAIR_NUMBERS = ("margin", "chosen_change", "rejected_change", "chosen_tokens", "rejected_tokens")

REWARDS = (
    ("rewards/chosen", "chosen", "blue", 0),
    ("rewards/rejected", "rejected", "orange", 1),
    ("rewards/margins", "margin", "green", 3),
)


def charts(run: Facts) -> list[dict[str, Any]]:
    """The curves of a run: id, title, level lines, and series of [step, value]."""
    start = [{"at": math.log(2), "title": "ln 2: no preference"}] if run.config.loss.loss_type == ["sigmoid"] else []
    loss = [_series(run.train, "loss", "training", "grey", thin=True), _series(run.evals, "loss", "held-out", "blue")]
    accuracy = [
        _series(run.train, "rewards/accuracies", "training", "grey", thin=True),
        _series(run.evals, "rewards/accuracies", "held-out", "blue"),
        _series(run.evals, "logps/accuracies", "held-out, by log-probability alone", "green", dash=3),
    ]
    rewards = [
        _series(rows, key, f"{title}, {which}", color, which == "training", dash)
        for which, rows in (("held-out", run.evals), ("training", run.train))
        for key, title, color, dash in REWARDS
    ]
    half = [{"at": 0.5, "title": "chance"}]
    rate = _series(run.train, "learning_rate", "learning rate", "blue", thin=True)
    gradient = _series(run.train, "grad_norm", "before clipping", "orange", thin=True)
    found = [
        ("chart-loss", "Loss", start, loss),
        ("chart-rewards", "Rewards and their margin", [{"at": 0, "title": ""}], rewards),
        ("chart-accuracy", "Share of pairs with the higher reward on the chosen side", half, accuracy),
        ("chart-rate", "Learning rate", [], [rate]),
        ("chart-gradient", "Gradient norm", [], [gradient]),
    ]
    return [
        {"id": id, "title": title, "levels": levels, "series": [one for one in series if one["points"]]}
        for id, title, levels, series in found
        if any(one["points"] for one in series)
    ]


def _series(
    rows: Sequence[dict[str, Any]], key: str, title: str, color: str, thin: bool = False, dash: int = 0
) -> dict[str, Any]:
    # Before the first step every reward is 0: an accuracy of 0 would look like a bad start and is none.
    found = points([row for row in rows if key != "rewards/accuracies" or not all_ties(row)], key)
    every = math.ceil(len(found) / POINTS)
    kept = found[::every] if every > 1 else found
    if found and kept[-1] != found[-1]:
        kept = [*kept, found[-1]]
    return {"title": title, "color": color, "thin": thin, "dash": dash, "points": kept}


@dataclass(frozen=True)
class Sample:
    """An answered prompt to show.

    Attributes:
        number: of the prompt, from 1.
        row: its line of samples.jsonl.
        fault: what is broken about the result's answer, None when nothing is.
    """

    number: int
    row: Mapping[str, Any]
    fault: str | None


def samples(rows: Sequence[Mapping[str, Any]]) -> list[Sample]:
    """Of one evaluation's answers the broken ones, some, and the first others."""
    fault = fault_finder(rows)
    found = [Sample(n, row, fault(row, "policy") if "policy_loops" in row else None) for n, row in enumerate(rows, 1)]
    broken = [sample for sample in found if sample.fault][:BROKEN]
    others = [sample for sample in found if not sample.fault]
    return sorted(broken + others[: SAMPLES - len(broken)], key=lambda sample: sample.number)


def pairs(run: Facts) -> list[dict[str, Any]]:
    """The held-out pairs to browse, evenly spaced in the order of their margins."""
    return [_pair(pair) for pair in spread(run.pairs, PAIRS)]


def spread(found: Sequence[Any], most: int) -> Sequence[Any]:
    """As many as may be shown, evenly spaced, the first and the last among them."""
    if len(found) <= most:
        return found
    return [found[round(i * (len(found) - 1) / (most - 1))] for i in range(most)]


def _pair(pair: dict[str, Any]) -> dict[str, Any]:
    numbers = {key: md.number(pair.get(key)) or 0.0 for key in PAIR_NUMBERS}
    texts = {key: md.cut(pair[key], CHARACTERS) for key in ("prompt", "chosen", "rejected")}
    row = pair.get("row")
    return {"row": row if isinstance(row, int) else 0, **numbers, **texts}


def histogram(margins: Sequence[float], bins: int = 41) -> tuple[float, list[int]]:
    """Counts of margins in bins from -reach to +reach, with the reach; outliers fall into the outer bins."""
    if not margins:
        return 1.0, []
    reach = sorted(abs(margin) for margin in margins)[int(0.98 * (len(margins) - 1))] or 1.0
    counts = [0] * bins
    for margin in margins:
        counts[min(bins - 1, max(0, int((margin + reach) / (2 * reach) * bins)))] += 1
    return reach, counts
