"""metrics.jsonl: one line per logged step or evaluation, of a run that may be killed at any moment and go on later."""

from __future__ import annotations

import json
from pathlib import Path

from qdpo.errors import InputMissingError
from qdpo.files import explained
from qdpo.run.schema import Metrics

EVAL_PREFIX = "eval_"


def read_metrics(path: Path) -> list[Metrics]:
    """The lines of a file, in its order; none where there is no file.

    A last line that a kill cut short is left out: what it would have said is not known.

    Raises:
        InputMissingError: the file cannot be read, or another line says nothing.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text("utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise InputMissingError(f"cannot read {path}: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows += [_row(line)] if line.strip() else []
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise InputMissingError(f"{path}:{number}: not a line of metrics: {error}") from error
    return rows


def _row(line: str) -> Metrics:
    row = json.loads(line)
    return {**row, "step": int(row["step"])}


def by_step(rows: list[Metrics]) -> tuple[list[Metrics], list[Metrics]]:
    """Training steps and evaluations, in order of step; of two lines for one (it was logged again) the later counts.

    Returns:
        The lines of training steps, and those of evaluations without the `eval_` before their names.
    """
    train: dict[int, Metrics] = {}
    evals: dict[int, Metrics] = {}
    for row in rows:
        if any(key.startswith(EVAL_PREFIX) for key in row):
            evals[row["step"]] = without_prefix(row)
        else:
            train[row["step"]] = row
    return [train[step] for step in sorted(train)], [evals[step] for step in sorted(evals)]


def without_prefix(row: Metrics) -> Metrics:
    """An evaluation's numbers by the names that training steps have."""
    return {key.removeprefix(EVAL_PREFIX): value for key, value in row.items()}


def all_ties(row: Metrics) -> bool:
    """Whether the policy equals its reference in a row of metrics, so that there is nothing to be right about."""
    return all(row.get(f"rewards/{key}") == 0 for key in ("chosen", "rejected", "margins", "accuracies"))


def keep_until(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will do again, and one that a kill cut short; all of them at step 0.

    Raises:
        DiskError, OutputError: the file cannot be written.
    """

    def stays(line: str) -> bool:
        try:
            return step > 0 and _row(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            return False

    if path.exists():
        kept = [f"{line}\n" for line in path.read_text("utf-8").splitlines() if stays(line)]
        with explained(path):
            path.write_text("".join(kept), "utf-8")
