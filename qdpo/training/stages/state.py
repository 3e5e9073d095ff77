"""What the stages of a run hand on."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdpo.config.schema import RunConfig
from qdpo.config.steps import steps_for
from qdpo.hardware import Device, peak_memory
from qdpo.run.folder import now, step_of, write_record
from qdpo.run.schema import Process, Record

if TYPE_CHECKING:
    from qdpo.training.invariants import Check
    from qdpo.training.resume import Comparison


@dataclass
class RunState:
    """What the stages of a run hand on.

    Attributes:
        folder: the run directory.
        config: the resolved configuration.
        device: where it computes.
        resume: the checkpoint to continue from, None to start.
        record: the content of run.json.
        checks: the invariants that held.
        comparison: of what a resumed run finds with what it began with; None once everything was compared.
        begin: when this process began, as `time.monotonic` says it.
    """

    folder: Path
    config: RunConfig
    device: Device
    resume: Path | None = None
    record: Record = field(default_factory=Record)
    checks: list[Check] = field(default_factory=list)
    comparison: Comparison | None = None
    begin: float = field(default_factory=time.monotonic)

    def begin_process(self, command: str) -> None:
        """Put this process beside those that have trained before it.

        Args:
            command: the command line.
        """
        step = step_of(self.resume) if self.resume else 0
        process = Process(command=command, began=now(), device=self.device.name, from_step=step, to_step=step)
        self.record.processes = [*(self.record.processes or ()), process]

    def note_process(self, **values: Any) -> None:
        """Note how long this process works and what memory it has taken, unless it has ended.

        Args:
            values: what else is new of it.
        """
        *before, process = self.record.processes or [Process(state="finished")]
        if process.state not in (None, "running"):
            return
        values["seconds"] = time.monotonic() - self.begin
        # the GPU's counter may have been reset since
        values["peak_memory_bytes"] = max(peak_memory(self.device), process.peak_memory_bytes or 0)
        self.record.processes = [*before, process.model_copy(update=values)]

    def expect(self, **values: Any) -> None:
        """Compare values that run.json will have with those that a resumed run began with.

        Raises:
            ConfigError: one has changed that would change the result.
        """
        if self.comparison is not None:
            self.comparison.judge(self.comparison.facts(Record(**values).as_dict()))

    def save(self, **values: Any) -> None:
        """Update run.json; it is left as it was until a resumed run has compared everything."""
        self.expect(**values)
        for name, value in values.items():
            setattr(self.record, name, value)
        if self.comparison is not None:
            return
        steps = {"to_step": values["saved_step"]} if "saved_step" in values else {}
        self.note_process(state=self.record.state, **steps)
        write_record(self.folder, self.record)


def total_steps(config: RunConfig, pairs: int) -> int:
    """Optimizer steps of a run on that many training pairs."""
    return steps_for(pairs, config.train.pairs_per_step, config.train.num_train_epochs, config.train.max_steps)
