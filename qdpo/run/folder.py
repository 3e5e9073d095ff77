"""The run directory: the names of its files, choosing it, refusing a foreign one, and run.json."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from qdpo import console
from qdpo.config.resolve import Resolved, resolve, to_yaml
from qdpo.errors import InputMissingError, OutputError
from qdpo.files import STAGING_PREFIX, atomic_write, explained, read_json, sweep_abandoned, write_json
from qdpo.paths import output_path, refuse_link, refuse_links_out
from qdpo.redact import redact_all
from qdpo.run import lock
from qdpo.run.schema import Record

CONFIG = "config.yaml"
RECORD = "run.json"
DATA_REPORT = "data_report.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
REFERENCE = "reference"
CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"
EXPORT = "export"

EVALUATION = "evaluation"
PAIRS, HELDOUT, TASKS, JUDGE = "pairs.jsonl", "heldout.json", "tasks.json", "judge.json"
"""What was evaluated after training: the held-out pairs one by one and summed up, and tasks."""

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "trl",
    "datasets",
    "tokenizers",
    "accelerate",
    "safetensors",
)
NAME_A_RUN = "name a run directory, as `qdpo train` leaves it"

STEP_FOLDER = re.compile(r"step-(\d{6,})")
"""The name of a checkpoint's folder."""


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return checkpoints / f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("step-"))


def complete_steps(checkpoints: Path) -> list[int]:
    """Steps that have a checkpoint folder, ascending; whether its content is whole is not looked at."""
    found = [STEP_FOLDER.fullmatch(path.name) for path in checkpoints.glob("step-*")]
    return sorted(int(match[1]) for match in found if match)


def choose(wanted: str | None, name: str) -> Path:
    """The folder of a new run: the one asked for, or `runs/NAME`, numbered when it is taken.

    Raises:
        OutputError: the folder asked for is not empty, or cannot be a folder.
        BusyError: another process writes a run there.
    """
    if wanted is not None:
        folder = output_path(wanted, "--run-dir")
        refuse_link(folder, "--run-dir")
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file, not a folder", "choose another --run-dir")
        if folder.is_dir():
            lock.refuse_if_busy(folder)
            _refuse_content(folder)
        return folder
    folder, number = Path("runs") / name, 1
    while os.path.lexists(folder):
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _refuse_content(folder: Path) -> None:
    found = [path.name for path in folder.iterdir() if not _is_left_over(path.name)]
    if RECORD in found or CONFIG in found:
        raise OutputError(f"{folder} holds a run already", "continue it with --resume, or choose another --run-dir")
    if found:
        raise OutputError(f"{folder} is not empty and no run of qdpo", "choose another --run-dir")


def _is_left_over(name: str) -> bool:
    """Whether a run that was killed in its first moment leaves such a file."""
    return name == lock.FILE or name.startswith(STAGING_PREFIX)


def existing(wanted: str) -> Path:
    """The folder of a run to continue.

    Raises:
        InputMissingError: there is no run in it.
        OutputError: a part of it is a link that leads out of it.
    """
    folder = output_path(wanted, "--run-dir")
    if not (folder / CONFIG).is_file():
        raise InputMissingError(f"{folder} holds no run of qdpo ({CONFIG} is missing)", NAME_A_RUN)
    refuse_links_out(folder)
    sweep_exports(folder)
    return folder


def sweep_exports(folder: Path) -> None:
    """Remove what exports of a run that were killed have left in it."""
    for name in sweep_abandoned(folder / EXPORT):
        console.note(f"{folder / EXPORT / name}, left by an export that was killed, is removed or put back")


def create(folder: Path, resolved: Resolved) -> None:
    """Make the folder and write the resolved configuration into it."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / CONFIG, to_yaml(resolved))


def remove_start(folder: Path) -> None:
    """Remove what a start that failed has written, the folder too; one that has come further is left as it is."""
    begun = {CONFIG, RECORD, DATA_REPORT, lock.FILE}
    with contextlib.suppress(OSError):
        left = [path for path in folder.rglob("*") if not path.is_dir() and str(path.relative_to(folder)) not in begun]
        if not left:
            shutil.rmtree(folder)
            if folder.parent == Path("runs"):
                folder.parent.rmdir()  # where this was the first


def reopen(folder: Path, preset: str | None = None, overrides: Sequence[str] = ()) -> Resolved:
    """The configuration to continue an existing run with: its own, or a preset's, with overrides.

    Args:
        folder: the run directory.
        preset: None takes the run's own configuration.
        overrides: `section.key=value` strings.

    Raises:
        InputMissingError: there is no run in the folder.
    """
    own = existing(str(folder)) / CONFIG
    return resolve(str(own) if preset is None else preset, overrides)


def new_record(resolved: Resolved, version: str, preset: str, command: str) -> Record:
    """What run.json says of a run from its first moment.

    Args:
        resolved: the configuration.
        version: qdpo's.
        preset: what the user called the configuration.
        command: the command line.
    """
    return Record(
        schema=1,
        id=uuid.uuid4().hex,
        qdpo=version,
        name=resolved.config.name,
        preset=preset,
        created=now(),
        command=command,
        seed=resolved.config.train.seed,
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def read_record(folder: Path) -> Record:
    """run.json as it stands.

    Raises:
        InputMissingError: it is missing or broken.
    """
    path = folder / RECORD
    if not path.is_file():
        raise InputMissingError(f"{folder} holds no run of qdpo ({RECORD} is missing)", NAME_A_RUN)
    try:
        return Record.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputMissingError(f"{path} is no record of a run: {place}: {first['msg']}") from error


def write_record(folder: Path, record: Record) -> None:
    """Replace run.json; access tokens (in a command line, say) are left out."""
    write_json(folder / RECORD, redact_all(record.as_dict()))


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
