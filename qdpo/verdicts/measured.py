"""The evidence on a run, from the files in its directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdpo.config.steps import steps_for
from qdpo.evaluation.written import written_of
from qdpo.run.folder import HELDOUT
from qdpo.run.record import RunRecord, dig
from qdpo.run.results import read_evaluations, read_samples
from qdpo.verdicts.evidence import Evidence, Lengths, Setup


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
    return Evidence(
        record.train,
        record.evals,
        setup,
        written_of(read_samples(record.folder)),
        lengths_of(heldout),
        dig(record.data, "train", "separable") or {},
    )


def planned_steps(record: RunRecord) -> int:
    """Steps of the whole run; a finished one may have been stopped early."""
    done, train = record.facts.result.steps, record.config.train
    if done is not None:
        return done
    pairs = record.facts.data.train.pairs
    if not pairs:
        return train.max_steps or 0
    return steps_for(pairs, train.pairs_per_step, train.num_train_epochs, train.max_steps)


def lengths_of(heldout: Mapping[str, Any] | None) -> Lengths | None:
    """Won pairs by which side is longer, from evaluation/heldout.json."""

    def counted(group: str) -> tuple[int, int] | None:
        pairs = dig(heldout, "groups", group, "pairs")
        share = dig(heldout, "groups", group, "reward_accuracy", "value")
        return (pairs, round(pairs * share)) if isinstance(pairs, int) and isinstance(share, int | float) else None

    longer, shorter = counted("chosen_longer"), counted("chosen_shorter")
    return Lengths(longer, shorter) if longer and shorter else None
