"""The run directory: choosing it, refusing a foreign one, and run.json."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qdpo.config.resolve import Resolved, resolve, to_yaml
from qdpo.errors import InputMissingError, OutputError
from qdpo.files import atomic_write, explained, write_json

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
        OutputError: the folder asked for is not empty.
    """
    if wanted is not None:
        folder = Path(wanted).expanduser()
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file, not a folder", "choose another --run-dir")
        if folder.is_dir() and any(folder.iterdir()):
            if (folder / RECORD).is_file():
                raise OutputError(
                    f"{folder} holds a run already", "continue it with --resume, or choose another --run-dir"
                )
            raise OutputError(f"{folder} is not empty and no run of qdpo", "choose another --run-dir")
        return folder
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def create(folder: Path, resolved: Resolved) -> None:
    """Make the folder and write the resolved configuration into it."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / CONFIG, to_yaml(resolved))


def reopen(folder: Path) -> Resolved:
    """The configuration of an existing run.

    Raises:
        InputMissingError: there is no run in the folder.
    """
    if not (folder / CONFIG).is_file():
        raise InputMissingError(
            f"{folder} holds no run of qdpo ({CONFIG} is missing)",
            "give the folder that `qdpo train` named as its run directory",
        )
    return resolve(str(folder / CONFIG))


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
    """Replace run.json."""
    write_json(folder / RECORD, record)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
