"""What a run directory holds besides metrics: samples, evaluations, scored pairs, verifications of exports.

These files come from other stages and may be missing, torn by a kill, or of another version: what cannot be read is
left out here, because a report of the rest is still worth having.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from qdpo.config.steps import steps_for
from qdpo.run.pairs import EVALUATION, PAIRS
from qdpo.run.record import RunRecord, dig
from qdpo.verdicts.evidence import Answers, Evidence, Lengths, Setup

SAMPLES = "samples.jsonl"
HELDOUT = "heldout.json"
GRAM = 4
"""Words in a row that count as said before when they return."""


def evidence_of(record: RunRecord) -> Evidence:
    """Everything that verdicts on a run are made from."""
    config, train = record.config, record.config.train
    steps = _steps(record)
    setup = Setup(
        loss_type=tuple(config.loss.loss_type),
        beta=config.loss.beta,
        tau=config.loss.discopop_tau,
        learning_rate=train.learning_rate,
        warmup=train.warmup_steps or round(train.warmup_ratio * steps),
        max_steps=steps,
        pairs=dig(record.run, "data", "heldout", "pairs"),
        chosen_tokens=dig(record.data, "heldout", "tokens", "chosen", "median"),
    )
    heldout = read_evaluations(record.folder).get(HELDOUT)
    return Evidence(record.train, record.evals, setup, answers_of(read_samples(record.folder)), lengths_of(heldout))


def _steps(record: RunRecord) -> int:
    """Steps of the whole run; a finished one may have been stopped early."""
    done, train = dig(record.run, "result", "steps"), record.config.train
    if isinstance(done, int):
        return done
    pairs = dig(record.run, "data", "train", "pairs")
    if not pairs:
        return train.max_steps or 0
    return steps_for(pairs, train.pairs_per_step, train.num_train_epochs, train.max_steps)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; lines that hold none are left out."""
    try:
        # not splitlines: a text may hold other line separators than JSON Lines has
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []
    return [value for line in lines if isinstance(value := _json(line), dict)]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object of a file, None where there is none."""
    try:
        value = _json(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return value if isinstance(value, dict) else None


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The lines of samples.jsonl that hold a step, a prompt and both answers."""
    return [
        row
        for row in read_lines(folder / SAMPLES)
        if isinstance(row.get("step"), int)
        and all(isinstance(row.get(key), str) for key in ("prompt", "base", "policy"))
    ]


def read_evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    """The results in evaluation/, by file name."""
    found = {path.name: read_object(path) for path in sorted((folder / EVALUATION).glob("*.json"))}
    return {name: value for name, value in found.items() if value is not None}


def read_pairs(folder: Path) -> list[dict[str, Any]]:
    """The scored held-out pairs that have a margin and texts."""
    return [
        row
        for row in read_lines(folder / EVALUATION / PAIRS)
        if isinstance(row.get("margin"), int | float)
        and all(isinstance(row.get(key), str) for key in ("prompt", "chosen", "rejected"))
    ]


def read_exports(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of whole exports below export/, by folder: export.json, with `verify` where it was verified."""
    found = {}
    for path in sorted((folder / "export").glob("*/export.json")):
        record = read_object(path)
        if record is not None and not path.parent.name.startswith("."):
            found[path.parent.name] = {**record, "verify": read_object(path.parent / "verify.json")}
    return found


def answers_of(samples: Sequence[Mapping[str, Any]]) -> list[Answers]:
    """Words and repetition of the answers at each evaluation."""
    by_step: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in samples:
        by_step[row["step"]].append(row)
    return [
        Answers(
            step,
            fmean(len(row["policy"].split()) for row in rows),
            fmean(len(row["base"].split()) for row in rows),
            fmean(repeated(row["policy"]) for row in rows),
            fmean(repeated(row["base"]) for row in rows),
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
