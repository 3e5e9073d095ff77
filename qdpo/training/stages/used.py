"""After the first step: what it truly ran, said and kept."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from qdpo.training.invariants import Check
from qdpo.training.stages.state import Run
from qdpo.training.trainer import DpoTrainer


class UsedCallback(TrainerCallback):
    """Says once which functions and types the first step used, and writes it to run.json.

    Args:
        trainer: which has counted.
        run: whose record is written.
    """

    def __init__(self, trainer: DpoTrainer, run: Run) -> None:
        self.trainer, self.run = trainer, run
        self.done = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say it, once."""
        used = self.trainer.used
        if self.done or used is None:
            return
        self.done = True
        self.run.checks.append(Check("the first step", used.text()).say())
        self.run.save(engine=self.run.record.engine.model_copy(update={"used": used.as_dict()}))
