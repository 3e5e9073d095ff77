"""Reading a run directory back: all that is known of a run, from its files and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qdpo.config import strict_yaml
from qdpo.config.schema import RunConfig
from qdpo.errors import ConfigError, InputMissingError
from qdpo.files import read_json
from qdpo.run.folder import CONFIG, DATA_REPORT, METRICS, NAME_A_RUN, read_record
from qdpo.run.metrics import all_ties, by_step, read_metrics, without_prefix
from qdpo.run.schema import Metrics, Record

__all__ = ["Published", "RunRecord", "all_ties", "dig", "read_run"]


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
        facts: what ran, where, and with which result (`run.json`).
        data: what was read, left out and cut (`data_report.json`); empty when the file is not there.
        train: logged training steps in order of step (`metrics.jsonl`).
        evals: evaluations in order of step, keys without their `eval_` prefix (`metrics.jsonl`).
        published: where the card will be read; None for the run directory itself.
    """

    folder: Path
    config: RunConfig
    facts: Record
    data: dict[str, Any]
    train: list[Metrics]
    evals: list[Metrics]
    published: Published | None = None

    @cached_property
    def run(self) -> dict[str, Any]:
        """The record as run.json holds it."""
        return self.facts.as_dict()

    @property
    def merged(self) -> bool:
        """Whether what is published holds the base's weights too, and not the adapter alone."""
        return self.published is not None and self.published.format not in ("adapter", "gguf-lora")

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.facts.name or self.config.name

    @property
    def adapter_step(self) -> int | None:
        """The step that the final adapter comes from; None when the run has no result yet."""
        return self.facts.result.adapter_step

    @property
    def before(self) -> Metrics:
        """The evaluation of step 0, empty when there was none."""
        return self._at(0) or _evaluation(self.facts.result.before, 0)

    @property
    def after(self) -> Metrics:
        """The evaluation of the final adapter; the newest one while the run has no adapter."""
        if self.adapter_step is None:
            return self.evals[-1] if self.evals and self.evals[-1]["step"] > 0 else {}
        return self._at(self.adapter_step) or _evaluation(self.facts.result.after, self.adapter_step)

    def _at(self, step: int) -> Metrics:
        return next((row for row in self.evals if row["step"] == step), {})


def _evaluation(kept: Metrics | None, step: int) -> Metrics:
    """An evaluation as the result keeps it, for a run whose metrics.jsonl is not there."""
    return {"step": step, **without_prefix(kept)} if kept else {}


def read_run(run_dir: Path) -> RunRecord:
    """Read the files of a run directory.

    Raises:
        InputMissingError: `config.yaml` or `run.json` is not there, or a file cannot be understood.
    """
    if not (run_dir / CONFIG).is_file():
        raise InputMissingError(f"{run_dir} holds no run of qdpo ({CONFIG} is missing)", NAME_A_RUN)
    report = run_dir / DATA_REPORT
    train, evals = by_step(read_metrics(run_dir / METRICS))
    return RunRecord(
        folder=run_dir,
        config=_read_config(run_dir / CONFIG),
        facts=read_record(run_dir),
        data=read_json(report) if report.exists() else {},
        train=train,
        evals=evals,
    )


def _read_config(path: Path) -> RunConfig:
    """A run's own configuration; one that holds a token is read too, since whoever shows it hides tokens."""
    try:
        return RunConfig.model_validate(strict_yaml.loads(path.read_text("utf-8"), str(path)).values)
    except (OSError, UnicodeDecodeError, ConfigError, ValidationError) as error:
        raise InputMissingError(f"{path} is not a configuration of this version of qdpo: {error}") from error


def dig(value: Any, *keys: str) -> Any:
    """`value[key][key]...`, or None where something on the way is missing."""
    for key in keys:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value
