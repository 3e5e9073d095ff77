"""What the stages of a run hand on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdpo.config.schema import RunConfig
from qdpo.config.steps import steps_for
from qdpo.hardware import Device
from qdpo.training import run_folder

if TYPE_CHECKING:
    from qdpo.training.invariants import Check


@dataclass
class Run:
    """What the stages of a run hand on.

    Attributes:
        folder: the run directory.
        config: the resolved configuration.
        device: where it computes.
        resume: the checkpoint to continue from, None to start.
        record: the content of run.json.
        checks: the invariants that held.
    """

    folder: Path
    config: RunConfig
    device: Device
    resume: Path | None = None
    record: dict[str, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    def save(self, **values: Any) -> None:
        """Update run.json."""
        self.record.update(values)
        run_folder.write_record(self.folder, self.record)


def total_steps(config: RunConfig, pairs: int) -> int:
    """Optimizer steps of a run on that many training pairs."""
    return steps_for(pairs, config.train.pairs_per_step, config.train.num_train_epochs, config.train.max_steps)
