"""Ending a run when the held-out pairs have stopped getting better.

What has been seen is read from metrics.jsonl and not kept here: a resumed run counts on where it stood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qdpo import console
from qdpo.config.schema import TrainSection
from qdpo.training import parallel
from qdpo.training.log import read_metrics

KEYS = {"accuracy": "eval_rewards/accuracies", "loss": "eval_loss"}


@dataclass(frozen=True)
class EarlyStop:
    """Ends training after some evaluations in a row without a new best.

    The step where it ends becomes the run's last one, with its checkpoint, so that a resume has nothing left to do.

    Attributes:
        path: the run's metrics.jsonl.
        by: what is to get better.
        patience: evaluations in a row without a new best.
    """

    path: Path
    by: Literal["accuracy", "loss"]
    patience: int

    @classmethod
    def of(cls, train: TrainSection, folder: Path) -> EarlyStop | None:
        """What the settings ask for, in a run directory; None for no early stop."""
        if train.early_stop == "none":
            return None
        return cls(folder / "metrics.jsonl", train.early_stop, train.early_stop_evals)

    def ends(self, step: int, steps: int) -> bool:
        """Whether a run of `steps` is to end after the evaluation of a step, which is said."""
        rows, waited = self._waited(step)
        if waited < self.patience:
            return False
        best = rows[-1 - waited]
        console.note(
            f"early stop at step {step} of {steps}: held-out {self.by} has not been better than "
            f"{best[KEYS[self.by]]:.4f} at step {best['step']} in {waited} evaluations (train.early_stop_evals)"
        )
        return True

    def ended(self, step: int) -> bool:
        """Whether a run that stands at a step has been ended there; a resume with more patience goes on."""
        return self._waited(step)[1] >= self.patience

    def _waited(self, step: int) -> tuple[list[dict[str, float]], int]:
        """The evaluations up to a step, and how many of them came after the best."""
        rows = read_metrics(self.path) if self.path.exists() else []
        # before the first step policy and reference are equal: an accuracy of ties, and no achievement
        rows = [row for row in rows if KEYS[self.by] in row and 0 < row["step"] <= step]
        waited = evaluations_since_best([row[KEYS[self.by]] for row in rows], lower_is_better=self.by == "loss")
        # one process decides for all: a difference in the last digit must not end half of them
        return rows, parallel.from_first(waited)


def evaluations_since_best(values: Sequence[float], *, lower_is_better: bool) -> int:
    """How many values came after the best one, the first of equals; 0 of none."""
    if not values:
        return 0
    best = min(values) if lower_is_better else max(values)
    return len(values) - 1 - values.index(best)
