"""The run directory: choosing it, refusing a foreign one, and run.json."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qdpo.config.resolve import Resolved, resolve, to_yaml
from qdpo.errors import InputMissingError, OutputError
from qdpo.files import STAGING_PREFIX, atomic_write, explained, write_json
from qdpo.paths import output_path, refuse_link, refuse_links_out
from qdpo.redact import redact_all
from qdpo.run import lock

CONFIG = "config.yaml"
RECORD = "run.json"
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
        raise InputMissingError(
            f"{folder} holds no run of qdpo ({CONFIG} is missing)",
            "give the folder that `qdpo train` named as its run directory",
        )
    refuse_links_out(folder)
    return folder


def create(folder: Path, resolved: Resolved) -> None:
    """Make the folder and write the resolved configuration into it."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / CONFIG, to_yaml(resolved))


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


def new_record(resolved: Resolved, version: str, preset: str, command: str) -> dict[str, Any]:
    """What run.json says of a run from its first moment.

    Args:
        resolved: the configuration.
        version: qdpo's.
        preset: what the user called the configuration.
        command: the command line.
    """
    return {
        "schema": 1,
        "id": uuid.uuid4().hex,
        "qdpo": version,
        "name": resolved.config.name,
        "preset": preset,
        "created": now(),
        "command": command,
        "seed": resolved.config.train.seed,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def read_record(folder: Path) -> dict[str, Any]:
    """run.json as it stands.

    Raises:
        InputMissingError: it is missing or broken.
    """
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
    except FileNotFoundError as error:
        raise InputMissingError(f"{folder} holds no run ({RECORD} is missing)") from error
    except (OSError, ValueError) as error:
        raise InputMissingError(f"{folder / RECORD} cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise InputMissingError(f"{folder / RECORD} cannot be read: it holds no JSON object")
    return record


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Replace run.json; access tokens (in a command line, say) are left out."""
    write_json(folder / RECORD, redact_all(record))


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
