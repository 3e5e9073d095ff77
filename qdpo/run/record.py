"""Reading a run directory back: what the card and the plots are made of, and nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qdpo.config import strict_yaml
from qdpo.config.schema import RunConfig
from qdpo.errors import ConfigError, InputMissingError

EVAL_PREFIX = "eval_"


@dataclass(frozen=True)
class Published:
    """Where a card is read: at the root of a repository on the hub, beside what was published.

    Attributes:
        repo: its name, `user/name`.
        format: `adapter`, or the name of an export.
    """

    repo: str
    format: str


@dataclass(frozen=True)
class RunRecord:
    """The files of a run directory.

    Attributes:
        folder: the run directory.
        config: the resolved configuration (`config.yaml`).
        run: what ran, where, and with which result (`run.json`).
        data: what was read, left out and cut (`data_report.json`); empty when the file is not there.
        train: logged training steps in order of step (`metrics.jsonl`).
        evals: evaluations in order of step, keys without their `eval_` prefix (`metrics.jsonl`).
        published: where the card will be read; None for the run directory itself.
    """

    folder: Path
    config: RunConfig
    run: dict[str, Any]
    data: dict[str, Any]
    train: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    published: Published | None = None

    @property
    def merged(self) -> bool:
        """Whether what is published holds the base's weights too, and not the adapter alone."""
        return self.published is not None and self.published.format not in ("adapter", "gguf-lora")

    @property
    def name(self) -> str:
        """The name of the run."""
        return str(self.run.get("name") or self.config.name)

    @property
    def adapter_step(self) -> int | None:
        """The step that the final adapter comes from; None when the run has no result yet."""
        step = dig(self.run, "result", "adapter_step")
        return step if isinstance(step, int) else None

    @property
    def before(self) -> dict[str, Any]:
        """The evaluation of step 0, empty when there was none."""
        return next((row for row in self.evals if row["step"] == 0), {}) or self._result("before", 0)

    @property
    def after(self) -> dict[str, Any]:
        """The evaluation of the final adapter; the newest one while the run has no adapter."""
        if self.adapter_step is None:
            return self.evals[-1] if self.evals and self.evals[-1]["step"] > 0 else {}
        found = next((row for row in self.evals if row["step"] == self.adapter_step), {})
        return found or self._result("after", self.adapter_step)

    def _result(self, which: str, step: int) -> dict[str, Any]:
        metrics = dig(self.run, "result", which)
        if not isinstance(metrics, dict) or not metrics:
            return {}
        return {"step": step, **{key.removeprefix(EVAL_PREFIX): value for key, value in metrics.items()}}


def read_run(run_dir: Path) -> RunRecord:
    """Read the files of a run directory.

    Raises:
        InputMissingError: `config.yaml` or `run.json` is not there, or a file cannot be understood.
    """
    train, evals = _read_metrics(run_dir / "metrics.jsonl")
    return RunRecord(
        folder=run_dir,
        config=_read_config(run_dir / "config.yaml"),
        run=_read_object(run_dir / "run.json"),
        data=_read_object(run_dir / "data_report.json") if (run_dir / "data_report.json").exists() else {},
        train=train,
        evals=evals,
    )


def dig(value: Any, *keys: str) -> Any:
    """`value[key][key]...`, or None where something on the way is missing."""
    for key in keys:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def all_ties(row: dict[str, Any]) -> bool:
    """Whether the policy equals its reference in a row of metrics, so that there is nothing to be right about."""
    return all(row.get(f"rewards/{key}") == 0 for key in ("chosen", "rejected", "margins", "accuracies"))


def _read_config(path: Path) -> RunConfig:
    try:
        return RunConfig.model_validate(strict_yaml.loads(_read(path), str(path)).values)
    except (ConfigError, ValidationError) as error:
        raise InputMissingError(f"{path} is not a configuration of this version of qdpo: {error}") from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(path))
    except ValueError as error:
        raise InputMissingError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputMissingError(f"{path} should hold one JSON object, it holds {type(value).__name__}")
    return value


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputMissingError(
            f"cannot read {path}: {error}", "name a run directory, as `qdpo train` leaves it"
        ) from error


def _read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training rows and evaluation rows; of two rows for one step (a resumed run logs it again) the later counts."""
    if not path.exists():
        return [], []
    train: dict[int, dict[str, Any]] = {}
    evals: dict[int, dict[str, Any]] = {}
    text = _read(path)
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step = int(row["step"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not text.endswith("\n"):
                break  # a line that a kill cut short: what it would have said is not known
            raise InputMissingError(f"{path}:{number}: not a line of metrics: {error}") from error
        if any(key.startswith(EVAL_PREFIX) for key in row):
            evals[step] = {key.removeprefix(EVAL_PREFIX): value for key, value in row.items()}
        else:
            train[step] = row
    return [train[step] for step in sorted(train)], [evals[step] for step in sorted(evals)]
