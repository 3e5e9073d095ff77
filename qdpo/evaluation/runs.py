"""Runs of a folder side by side, and two of them compared: settings with their origins, and results."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from qdpo.config import fields
from qdpo.config.resolve import value_of
from qdpo.errors import BusyError, InputMissingError, QdpoError
from qdpo.run import lock
from qdpo.run.folder import CHECKPOINTS, CONFIG, METRICS, RECORD, complete_steps
from qdpo.run.metrics import all_ties
from qdpo.run.recipe import read_origins
from qdpo.run.record import RunRecord, read_run
from qdpo.run.schema import Metrics, Record

RESULTS = {
    "prefers_chosen": "logps/accuracies",
    "reward_accuracy": "rewards/accuracies",
    "reward_margin": "rewards/margins",
    "loss": "loss",
    "text_nll": "text_nll",
}
"""What a run is judged by: our name, and the metric's."""

NEUTRAL = {"name", "about", "card", "notes", "gpu_memory_gib"}
"""Settings that describe a recipe and change nothing."""


def find(folder: Path) -> list[Path]:
    """The run directories in a folder, or the folder itself if it is one; by name.

    Raises:
        InputMissingError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputMissingError(f"there is no folder {folder}", "give the folder that holds your run directories")
    if _is_run(folder):
        return [folder]
    return sorted(path for path in folder.iterdir() if path.is_dir() and _is_run(path))


def _is_run(folder: Path) -> bool:
    return (folder / RECORD).is_file() or (folder / CONFIG).is_file()


def describe(folder: Path) -> dict[str, Any]:
    """One run in a few values; what is not known is None.

    Returns:
        folder, state (finished, running, stopped by a signal, interrupted, damaged), problem (why it is damaged),
        preset, base, data, created, age_seconds (since anything was written), step, steps, before and after
        (`RESULTS`), seconds, peak_memory_bytes, checkpoint (the newest one's step).
    """
    row: dict[str, Any] = {
        "folder": str(folder),
        "state": "damaged",
        "problem": None,
        # the newest; whether it is whole is found out when it is loaded
        "checkpoint": max(complete_steps(folder / CHECKPOINTS), default=None),
    }
    written = [path.stat().st_mtime for name in (RECORD, METRICS) if (path := folder / name).is_file()]
    row["age_seconds"] = max(0.0, time.time() - max(written)) if written else None
    try:
        record = read_run(folder)
    except QdpoError as error:
        return row | {"problem": error.message}
    config, run = record.config, record.facts
    last = max((int(line["step"]) for line in [*record.train, *record.evals]), default=0)
    finished = run.state == "finished"
    return row | {
        "state": _state(folder, run),
        "preset": run.preset or config.name,
        "base": run.base.name or config.model.name,
        "data": run.data.train.name or config.data.name,
        "created": run.created,
        "step": run.result.steps if finished else last,
        "steps": run.result.steps if finished else config.train.max_steps,
        "before": _results(record.before),
        "after": _results(record.after),
        "seconds": run.result.seconds,
        "peak_memory_bytes": run.result.peak_memory_bytes,
    }


def _state(folder: Path, run: Record) -> str:
    try:
        lock.refuse_if_busy(folder)
    except BusyError:
        return "running"
    # a run that nobody holds and that did not say how it ended was killed
    return run.state if run.state in ("finished", "stopped") else "interrupted"


def _results(metrics: Metrics) -> dict[str, Any]:
    found = {ours: metrics.get(theirs) for ours, theirs in RESULTS.items()}
    if metrics and all_ties(metrics):
        found["reward_accuracy"] = None
    return found


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Two runs: what differs in their configuration, versions and hardware, and both results.

    Returns:
        runs: what `describe` says of each; settings: key, values and origins of each setting that differs; versions:
        name and values; hardware; same_heldout: whether both were evaluated on the same pairs (None: not known).

    Raises:
        InputMissingError: one of them cannot be read.
    """
    records = [read_run(folder) for folder in (first, second)]
    origins = [read_origins(folder) for folder in (first, second)]
    settings = []
    for key in fields.settings():
        values = [value_of(record.config, key) for record in records]
        if values[0] != values[1] and key not in NEUTRAL:
            settings.append({"key": key, "values": values, "origins": [known.get(key) for known in origins]})
    fingerprints = [record.facts.data.heldout.fingerprint for record in records]
    return {
        "runs": [describe(folder) for folder in (first, second)],
        "settings": settings,
        "versions": _versions(records),
        "hardware": [record.facts.hardware.name for record in records],
        "same_heldout": None if None in fingerprints else fingerprints[0] == fingerprints[1],
    }


def _versions(records: list[RunRecord]) -> list[dict[str, Any]]:
    known = [{**(r.facts.versions or {}), "qdpo": r.facts.qdpo} for r in records]
    names = sorted(set(known[0]) | set(known[1]))
    differing = [name for name in names if known[0].get(name) != known[1].get(name)]
    return [{"name": name, "values": [versions.get(name) for versions in known]} for name in differing]
