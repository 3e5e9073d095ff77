"""The artefacts inside an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdpo.errors import InputMissingError
from qdpo.export.source import Run
from qdpo.export.verify.awq_target import AwqTarget
from qdpo.export.verify.folder_target import FolderTarget
from qdpo.export.verify.gguf_target import GgufTarget
from qdpo.export.verify.lora_target import LoraTarget
from qdpo.export.verify.target import Target


def targets_of(folder: Path, record: dict[str, Any], run: Run) -> list[Target]:
    """The artefacts of an export.

    Raises:
        InputMissingError: an unknown format.
    """
    format = record.get("format")
    if format == "safetensors":
        return [FolderTarget(folder, str(record["dtype"]), run)]
    if format == "awq":
        return [AwqTarget(folder, "awq", run)]
    if format in ("gguf", "ollama"):
        return [
            GgufTarget(folder / name, str(kind), run, record["merge_base"]) for name, kind in record["files"].items()
        ]
    if format == "gguf-lora":
        return [LoraTarget(folder / name, str(kind), run) for name, kind in record["files"].items()]
    raise InputMissingError(f"{folder} has format {format!r}, which this version of qdpo cannot verify")
