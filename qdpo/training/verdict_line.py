"""One line at each evaluation that says what the curves mean so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qdpo import console
from qdpo.errors import QdpoError, first_line
from qdpo.run.record import read_run
from qdpo.verdicts.measured import evidence_of
from qdpo.verdicts.rules import judge


class VerdictCallback(TrainerCallback):
    """Judges the run after every evaluation, from the files that it has written; stands behind those who write them.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say the verdict; at step 0 there is nothing to judge."""
        if not state.is_world_process_zero or state.global_step == 0:
            return
        try:
            verdict = judge(evidence_of(read_run(self.folder)))[0]
        except (QdpoError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            # a remark about a run is no reason to end it
            console.warn(f"no verdict at step {state.global_step}: {type(error).__name__}: {first_line(error)}")
            return
        (console.warn if verdict.alarm else console.note)(f"step {state.global_step}, {verdict.line()}")
