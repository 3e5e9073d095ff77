"""Experiment trackers besides metrics.jsonl: accelerate's, present or not, and where they write."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdpo.config.strict_yaml import dump
from qdpo.errors import UnavailableError, first_line
from qdpo.training.stages.state import RunState

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

    def __init__(self, run: RunState) -> None:
        self.run = run
        self.trackers: list[Any] = []

    def begin(self) -> None:
        """Start every tracker, and tell it the settings.

        Raises:
            UnavailableError: one does not start.
        """
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
                id=self.run.record.id,
                resume="allow",
                dir=str(self.run.folder),
            ),
            "trackio": lambda: TrackioTracker(
                os.environ.get("TRACKIO_PROJECT") or PROJECT, name=config.name, resume="allow"
            ),
        }
        settings = {
            key: value if isinstance(value, bool | int | float | str) else dump(value)
            for key, value in (self.run.record.settings or {}).items()
        }
        for name in config.train.report_to:
            try:
                tracker = makers[name]()
                tracker.start()
                tracker.store_init_configuration(settings)
            except Exception as error:  # whatever a tracker raises, the user must log in, or leave it out
                raise UnavailableError(
                    f"train.report_to: {name} does not start: {first_line(error, 200)}",
                    f"see {name}'s own documentation, or leave it out of train.report_to",
                ) from error
            self.trackers.append(tracker)

    def log(self, part: str, step: int, values: dict[str, float]) -> None:
        """Metrics of a step, under `train/` or, those of an evaluation, `eval/`."""
        group = "train" if part == "train" else "eval"
        named = {f"{group}/{name.removeprefix('eval_')}": value for name, value in values.items()}
        for tracker in self.trackers:
            tracker.log(named, step=step)

    def close(self) -> None:
        """Write what is left."""
        for tracker in self.trackers:
            tracker.finish()
        self.trackers = []
