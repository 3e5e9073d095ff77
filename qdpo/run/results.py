"""What other stages leave in a run directory: samples, evaluations, scored pairs, exports and their verification.

These files come from other stages and may be missing, torn by a kill, or of another version: what cannot be read is
left out here, because a report of the rest is still worth having.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdpo.run.folder import EVALUATION, EXPORT, PAIRS, SAMPLES


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; lines that hold none are left out."""
    # not splitlines: a text may hold other line separators than JSON Lines has
    return [value for line in _read(path).split("\n") if isinstance(value := _json(line), dict)]


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object of a file, None where there is none."""
    value = _json(_read(path))
    return value if isinstance(value, dict) else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The lines of samples.jsonl that hold a step, a prompt and both answers."""
    rows = read_lines(folder / SAMPLES)
    return [row for row in rows if isinstance(row.get("step"), int) and _texts(row, "prompt", "base", "policy")]


def read_evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    """The results in evaluation/, by file name."""
    found = {path.name: read_object(path) for path in sorted((folder / EVALUATION).glob("*.json"))}
    return {name: value for name, value in found.items() if value is not None}


def read_pairs(folder: Path) -> list[dict[str, Any]]:
    """The scored held-out pairs that have a margin and texts."""
    rows = read_lines(folder / EVALUATION / PAIRS)
    return [row for row in rows if _finite(row.get("margin")) and _texts(row, "prompt", "chosen", "rejected")]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _texts(row: Mapping[str, Any], *keys: str) -> bool:
    return all(isinstance(row.get(key), str) for key in keys)


def read_exports(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of whole exports below export/, by folder: export.json, with `verify` where it was verified."""
    found = {}
    for path in sorted((folder / EXPORT).glob("*/export.json")):
        record = read_object(path)
        if record is not None and not path.parent.name.startswith("."):
            found[path.parent.name] = {**record, "verify": read_object(path.parent / "verify.json")}
    return found
