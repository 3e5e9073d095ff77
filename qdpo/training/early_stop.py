"""Ending a run when the held-out pairs have stopped getting better.

What has been seen is read from metrics.jsonl and not kept here: a resumed run counts on where it stood.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qdpo import console
from qdpo.run.metrics import read_metrics
from qdpo.training import parallel

KEYS = {"accuracy": "eval_rewards/accuracies", "loss": "eval_loss"}


class EarlyStopCallback(TrainerCallback):
    """Ends training after some evaluations in a row without a new best; stands behind the one who writes the metrics.

    The step where it ends becomes the run's last one, with its checkpoint, so that a resume has nothing left to do.

    Args:
        path: the run's metrics.jsonl.
        by: what is to get better.
        patience: evaluations in a row without a new best.
    """

    def __init__(self, path: Path, by: Literal["accuracy", "loss"], patience: int) -> None:
        self.path = path
        self.by: Literal["accuracy", "loss"] = by
        self.patience = patience

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Look back, and stop if it is time."""
        if state.global_step >= state.max_steps or state.global_step == 0:
            return control
        rows, waited = self._waited(state.global_step)
        if waited < self.patience:
            return control
        best = rows[-1 - waited]
        console.note(
            f"early stop at step {state.global_step} of {state.max_steps}: held-out {self.by} has not been better than "
            f"{best[KEYS[self.by]]:.4f} at step {best['step']} in {waited} evaluations (train.early_stop_evals)"
        )
        state.max_steps = state.global_step
        control.should_training_stop = control.should_save = True
        return control

    def ended(self, step: int) -> bool:
        """Whether a run that stands at a step has been ended there; a resume with more patience goes on."""
        return self._waited(step)[1] >= self.patience

    def _waited(self, step: int) -> tuple[list[dict[str, float]], int]:
        """The evaluations up to a step, and how many of them came after the best."""
        rows = read_metrics(self.path)
        # before the first step policy and reference are equal: an accuracy of ties, and no achievement
        rows = [row for row in rows if KEYS[self.by] in row and 0 < row["step"] <= step]
        waited = evaluations_since_best([row[KEYS[self.by]] for row in rows], lower_is_better=self.by == "loss")
        # one process decides for all: a difference in the last digit must not end half of them
        return rows, parallel.from_first(waited)


def ended_early(callbacks: Sequence[TrainerCallback], step: int) -> bool:
    """Whether one of a trainer's callbacks has ended the run at a step."""
    return any(isinstance(callback, EarlyStopCallback) and callback.ended(step) for callback in callbacks)


def evaluations_since_best(values: Sequence[float], *, lower_is_better: bool) -> int:
    """How many values came after the best one, the first of equals; 0 of none."""
    if not values:
        return 0
    best = min(values) if lower_is_better else max(values)
    return len(values) - 1 - values.index(best)
