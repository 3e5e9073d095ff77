"""Experiment trackers besides metrics.jsonl: present or not, and where they write."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from qdpo.errors import UnavailableError


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


def set_folder(run_folder: Path) -> None:
    """Let TensorBoard write into the run directory, unless the user chose another place."""
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run_folder / "tensorboard"))
