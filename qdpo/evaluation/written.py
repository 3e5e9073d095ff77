"""What written answers look like before and after training, by measures that need no judge.

An answer is broken when it is empty, runs in circles, left the script that the data and the base write, or is so
unlikely under the base that neither the preferred answers nor the base's own are: text that holds together is likely
under any model of the language, whichever answer it prefers. Language within a script is left to the same measure.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from qdpo.data.quality.oddities import script_of
from qdpo.evaluation.statistics import mcnemar_exact, wilson

GRAM = 4
"""Words in a row that count as said before when they return."""

TAIL = 64
"""Tokens at the end of an answer in which a loop is looked for."""

SHORTEST_TAIL = 24
"""Fewer tokens say nothing."""

ALIKE = 0.9
"""Share of the tail's tokens that equal those one period before, from which on it is a loop."""

UNUSUAL = 0.95
"""Share of the preferred answers and of the base's own that are likelier under the base than an unlikely answer."""

COSTS = ("base", "policy", "chosen")

Row = Mapping[str, Any]
"""A line of samples.jsonl, see `qdpo.training.samples`."""


def is_loop(ids: Sequence[int]) -> bool:
    """Whether the end of an answer repeats one n-gram over and over.

    The last `TAIL` tokens do when, for a period of at most half of them, nearly all equal the token one period before.

    Args:
        ids: tokens of the answer.
    """
    tail = list(ids[-TAIL:])
    if len(tail) < SHORTEST_TAIL:
        return False
    for period in range(1, len(tail) // 2 + 1):
        same = sum(one == other for one, other in zip(tail[period:], tail, strict=False))
        if same >= ALIKE * (len(tail) - period):
            return True
    return False


def repeated(text: str) -> float:
    """The share of a text's 4-grams of words that came before in it (Welleck et al. 2019, seq-rep-4)."""
    words = text.split()
    grams = [tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def overlap(text: str, other: str) -> float:
    """F1 of the words that two texts share, each as often as both have it, without regard to case; 0 to 1."""
    words, others = Counter(text.casefold().split()), Counter(other.casefold().split())
    shared = (words & others).total()
    return 2 * shared / (words.total() + others.total()) if shared else 0.0


@dataclass(frozen=True)
class Change:
    """How many of n answers have a property, before and after.

    Attributes:
        n: prompts that tell.
        before: answers of the base that have it.
        after: answers of the policy that have it.
        p_value: exact McNemar test of the prompts whose answers differ in it; 1 when there are none.
    """

    n: int
    before: int
    after: int
    p_value: float

    @classmethod
    def of(cls, before: Sequence[bool], after: Sequence[bool]) -> Change | None:
        """The property of the answers to the same prompts; None of no prompts."""
        if not before:
            return None
        gained = sum(b > a for a, b in zip(before, after, strict=True))
        lost = sum(a > b for a, b in zip(before, after, strict=True))
        return cls(len(before), sum(before), sum(after), mcnemar_exact(gained, lost))

    @property
    def grown(self) -> float:
        """By which share of the prompts more answers have it."""
        return (self.after - self.before) / self.n

    @property
    def now(self) -> str:
        """The share of the policy's answers that have it, with its interval."""
        found = wilson(self.after, self.n)
        return f"{found.value:.0%} [{found.low:.0%}, {found.high:.0%}]"

    def __str__(self) -> str:
        return f"{self.now} ({self.before / self.n:.0%} before)"

    def of_answers(self, what: str) -> str:
        """In words, what being said of answers."""
        return f"{self.now} of {self.n} written answers {what}, {self.before / self.n:.0%} before"


@dataclass(frozen=True)
class Written:
    """The answers to the same prompts at one evaluation, in numbers; each pair is (base, policy).

    Attributes:
        step: the optimizer step.
        prompts: how many.
        words: mean words of an answer.
        repeated: mean share of 4-grams that an answer had before.
        broken: answers that are, see above; None where a run of an older version did not measure it.
        faults: of the policy's broken answers, how many for which reason.
        ended: answers that came to an end within samples.max_new_tokens.
        nearer_chosen: answers that share more words with the chosen than with the rejected one, of the prompts where
            both answers are nearer to one of them.
        nats: nats per token that the answers cost the base; None where none was measured.
        chosen_nats: the same of the chosen answers.
        right, wrong: answers known to be right or wrong, of the prompts in samples.answer_key.
    """

    step: int
    prompts: int
    words: tuple[float, float]
    repeated: tuple[float, float]
    broken: Change | None = None
    faults: Mapping[str, int] | None = None
    ended: Change | None = None
    nearer_chosen: Change | None = None
    nats: tuple[float, float] | None = None
    chosen_nats: float | None = None
    right: Change | None = None
    wrong: Change | None = None

    def soundness(self) -> str:
        """How many answers are right, wrong and broken; empty where none of it was measured."""
        parts = [f"right {self.right}"] if self.right is not None else []
        parts += [f"wrong {self.wrong}"] if self.wrong is not None else []
        if self.broken is not None:
            parts.append(f"broken {self.broken}" + (f": {self.reasons}" if self.reasons else ""))
        return ", ".join(parts)

    @property
    def reasons(self) -> str:
        """What the broken answers are, with counts."""
        return ", ".join(f"{count} {fault}" for fault, count in (self.faults or {}).items())

    def line(self) -> str:
        """All that was measured, in one line."""
        parts = [found] if (found := self.soundness()) else []
        if self.ended is not None:
            parts.append(f"ended {self.ended}")
        parts.append(f"{self.words[1]:.0f} words ({self.words[0]:.0f})")
        if self.nearer_chosen is not None:
            parts.append(f"nearer to chosen than to rejected {self.nearer_chosen}, of {self.nearer_chosen.n} that tell")
        if self.nats is not None:
            chosen = "" if self.chosen_nats is None else f", the chosen answers {self.chosen_nats:.2f}"
            parts.append(f"they cost the base {self.nats[1]:.2f} nats a token, its own {self.nats[0]:.2f}{chosen}")
        return f"{self.prompts} written answers: {'; '.join(parts)}"


def written_of(rows: Sequence[Row]) -> list[Written]:
    """The lines of samples.jsonl, evaluation by evaluation."""
    by_step: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_step[row["step"]].append(row)
    return [_written(step, found) for step, found in sorted(by_step.items())]


def _written(step: int, rows: Sequence[Row]) -> Written:
    fault_of = fault_finder(rows)
    measured = [row for row in rows if "policy_loops" in row]
    faults = Counter(fault for row in measured if (fault := fault_of(row, "policy")))
    tell = [row for row in rows if _nearer(row, "base") is not None and _nearer(row, "policy") is not None]
    keyed = [row for row in rows if row.get("policy_known") is not None]
    costs = {side: [row[f"{side}_nats"] for row in rows if row.get(f"{side}_nats") is not None] for side in COSTS}

    def change(among: Sequence[Row], has: Callable[[Row, str], bool]) -> Change | None:
        return Change.of([has(row, "base") for row in among], [has(row, "policy") for row in among])

    return Written(
        step,
        len(rows),
        words=_both(rows, lambda text: len(text.split())),
        repeated=_both(rows, repeated),
        broken=change(measured, lambda row, side: fault_of(row, side) is not None),
        faults=dict(faults.most_common()),
        ended=change([row for row in rows if "policy_ended" in row], lambda row, side: row[f"{side}_ended"]),
        nearer_chosen=change(tell, lambda row, side: bool(_nearer(row, side))),
        nats=(fmean(costs["base"]), fmean(costs["policy"])) if costs["base"] and costs["policy"] else None,
        chosen_nats=fmean(costs["chosen"]) if costs["chosen"] else None,
        right=change(keyed, lambda row, side: row[f"{side}_known"] == "right"),
        wrong=change(keyed, lambda row, side: row[f"{side}_known"] == "wrong"),
    )


def _both(rows: Sequence[Row], measure: Callable[[str], float]) -> tuple[float, float]:
    return fmean(measure(row["base"]) for row in rows), fmean(measure(row["policy"]) for row in rows)


def fault_finder(rows: Sequence[Row]) -> Callable[[Row, str], str | None]:
    """What is broken about the answer of a side (`base`, `policy`) in a line of one evaluation; None when nothing is.

    Args:
        rows: all lines of the evaluation: how likely an answer should be is taken from them.
    """
    usual = [row[key] for row in rows for key in ("chosen_nats", "base_nats") if row.get(key) is not None]
    limit = float(np.quantile(usual, UNUSUAL)) if usual else float("inf")

    def fault(row: Row, side: str) -> str | None:
        text = row[side]
        if not text.strip():
            return "empty"
        if row[f"{side}_loops"]:
            return "in circles"
        script = script_of(text)
        if script not in {"none", script_of(row["base"]), script_of(row.get("chosen") or row["base"])}:
            return "in another script"
        cost = row.get(f"{side}_nats")
        return "unlikely under the base" if cost is not None and cost > limit else None

    return fault


def _nearer(row: Row, side: str) -> bool | None:
    """Whether an answer is nearer to the chosen than to the rejected one; None when it cannot be told."""
    if not isinstance(row.get("chosen"), str) or not isinstance(row.get("rejected"), str):
        return None
    chosen, rejected = overlap(row[side], row["chosen"]), overlap(row[side], row["rejected"])
    return None if chosen == rejected else chosen > rejected
