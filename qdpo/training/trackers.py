"""Experiment trackers besides metrics.jsonl: accelerate's, present or not, and where they write."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdpo.errors import UnavailableError
from qdpo.training.stages.state import Run

PROJECT = "qdpo"


def check_installed(names: Sequence[str]) -> None:
    """Every tracker of train.report_to is installed.

    Raises:
        UnavailableError: one is not, with the command that installs it.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UnavailableError(
            f"train.report_to: {', '.join(missing)} is not installed",
            f"pip install 'qdpo[{','.join(missing)}]', or leave it out of train.report_to",
        )


class Trackers:
    """The trackers of train.report_to; a resumed run goes on with the curves that it began.

    TensorBoard writes to `tensorboard` in the run directory, or to TENSORBOARD_LOGGING_DIR; Weights & Biases and
    Trackio take the project `qdpo`, or WANDB_PROJECT and TRACKIO_PROJECT.

    Args:
        run: its name, directory and settings.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.trackers: list[Any] = []

    def begin(self) -> None:
        """Start every tracker, and tell it the settings."""
        config = self.run.config
        if not config.train.report_to:
            return
        from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

        board = Path(os.environ.get("TENSORBOARD_LOGGING_DIR") or self.run.folder / "tensorboard")
        makers = {
            "tensorboard": lambda: TensorBoardTracker(board.name, board.parent),
            "wandb": lambda: WandBTracker(
                os.environ.get("WANDB_PROJECT") or PROJECT,
                name=config.name,
                id=self.run.record["id"],
                resume="allow",
                dir=str(self.run.folder),
            ),
            "trackio": lambda: TrackioTracker(
                os.environ.get("TRACKIO_PROJECT") or PROJECT, name=config.name, resume="allow"
            ),
        }
        for name in config.train.report_to:
            tracker = makers[name]()
            tracker.start()
            tracker.store_init_configuration(self.run.record["settings"])
            self.trackers.append(tracker)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Metrics of a step, as `train/...` and `eval/...`."""
        named = {
            f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}": value
            for name, value in values.items()
        }
        for tracker in self.trackers:
            tracker.log(named, step=step)

    def close(self) -> None:
        """Write what is left."""
        for tracker in self.trackers:
            tracker.finish()
        self.trackers = []
