"""The evidence on a run, from the files in its directory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from qdpo.config.steps import steps_for
from qdpo.run.folder import HELDOUT
from qdpo.run.record import RunRecord, dig
from qdpo.run.results import read_evaluations, read_samples
from qdpo.verdicts.evidence import Answers, Evidence, Lengths, Setup

GRAM = 4
"""Words in a row that count as said before when they return."""


def evidence_of(record: RunRecord) -> Evidence:
    """Everything that verdicts on a run are made from."""
    config, train = record.config, record.config.train
    steps = planned_steps(record)
    setup = Setup(
        loss_type=tuple(config.loss.loss_type),
        beta=config.loss.beta,
        tau=config.loss.discopop_tau,
        learning_rate=train.learning_rate,
        warmup=train.warmup_steps or round(train.warmup_ratio * steps),
        max_steps=steps,
        pairs=record.facts.data.heldout.pairs,
        train_pairs=record.facts.data.train.pairs,
        pairs_per_step=train.pairs_per_step,
        chosen_tokens=dig(record.data, "heldout", "tokens", "chosen", "median"),
    )
    heldout = read_evaluations(record.folder).get(HELDOUT)
    return Evidence(record.train, record.evals, setup, answers_of(read_samples(record.folder)), lengths_of(heldout))


def planned_steps(record: RunRecord) -> int:
    """Steps of the whole run; a finished one may have been stopped early."""
    done, train = record.facts.result.steps, record.config.train
    if done is not None:
        return done
    pairs = record.facts.data.train.pairs
    if not pairs:
        return train.max_steps or 0
    return steps_for(pairs, train.pairs_per_step, train.num_train_epochs, train.max_steps)


def answers_of(samples: Sequence[Mapping[str, Any]]) -> list[Answers]:
    """Words and repetition of the answers at each evaluation."""
    by_step: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in samples:
        by_step[row["step"]].append(row)
    return [
        Answers(
            step,
            words=fmean(len(row["policy"].split()) for row in rows),
            base_words=fmean(len(row["base"].split()) for row in rows),
            repeated=fmean(repeated(row["policy"]) for row in rows),
            base_repeated=fmean(repeated(row["base"]) for row in rows),
        )
        for step, rows in sorted(by_step.items())
    ]


def repeated(text: str) -> float:
    """The share of a text's 4-grams of words that came before in it (Welleck et al. 2019, seq-rep-4)."""
    words = text.split()
    grams = [tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def lengths_of(heldout: Mapping[str, Any] | None) -> Lengths | None:
    """Won pairs by which side is longer, from evaluation/heldout.json."""

    def counted(group: str) -> tuple[int, int] | None:
        pairs = dig(heldout, "groups", group, "pairs")
        share = dig(heldout, "groups", group, "reward_accuracy", "value")
        return (pairs, round(pairs * share)) if isinstance(pairs, int) and isinstance(share, int | float) else None

    longer, shorter = counted("chosen_longer"), counted("chosen_shorter")
    return Lengths(longer, shorter) if longer and shorter else None
