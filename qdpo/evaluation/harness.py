"""EleutherAI's lm-evaluation-harness on a loaded model: tasks found before the model is loaded, results as rows.

It is an extra (`pip install 'qdpo[eval]'`), imported on first use. Task data comes from the hub, or from local files
that a task's YAML names (`--include DIR`).
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdpo import console
from qdpo.errors import DataError, InputMissingError, UnavailableError, UsageError, first_line
from qdpo.progress import waiting


@dataclass(frozen=True)
class Settings:
    """How tasks are run.

    Attributes:
        include: folder of further task YAML files.
        limit: items of each task; None takes all.
        chat_template: ask in the model's chat format, few-shot examples as turns.
        batch_size: requests at once.
    """

    include: Path | None = None
    limit: int | None = None
    chat_template: bool = False
    batch_size: int = 8


@dataclass
class Row:
    """One metric of one task.

    Attributes:
        task, title: its name, and what people call it.
        version: of the task's definition.
        shots: few-shot examples.
        filter, metric: lm-eval's names.
        dataset: path, config and split of its data, as far as known.
        items: how many were answered.
        value: of the metric.
        stderr: its standard error, None where lm-eval gives none.
        right: for a metric that is 0 or 1 of each item: which items it is 1 of, by number.
        depth: how deep below a group it is.
    """

    task: str
    title: str
    version: str
    shots: int | None
    filter: str
    metric: str
    dataset: dict[str, str | None]
    items: int | None
    value: float
    stderr: float | None
    right: dict[int, bool] = field(default_factory=dict)
    depth: int = 0


def check_installed() -> None:
    """Ask for the extra before anything is loaded.

    Raises:
        UnavailableError: it is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UnavailableError("--tasks and --preset need lm-evaluation-harness", "pip install 'qdpo[eval]'")


class Harness:
    """The tasks that are to be run, found and with their data.

    Args:
        groups: names of tasks by few-shot examples (None: as each task says itself).
        settings: how they are run.

    Raises:
        UsageError: there is no such task.
        InputMissingError: the folder of further tasks is missing.
        UnavailableError: the data of a task cannot be had.
    """

    def __init__(self, groups: dict[int | None, list[str]], settings: Settings) -> None:
        check_installed()
        if settings.include is not None and not settings.include.is_dir():
            raise InputMissingError(f"there is no folder {settings.include} of tasks")
        with _quiet():
            from lm_eval.tasks import TaskManager

            self.manager = TaskManager(include_path=str(settings.include) if settings.include else None)
        self.groups, self.settings = groups, settings
        known = self.manager.all_tasks
        for name in (name for names in groups.values() for name in names):
            if name not in known:
                close = difflib.get_close_matches(name, known, n=3)
                hint = f"did you mean {', '.join(close)}? " if close else ""
                raise UsageError(
                    f"lm-evaluation-harness has no task {name!r}", f"{hint}`lm_eval ls tasks` lists all of them"
                )
        # bring the data, so that what is missing is said before a model is loaded
        for names in groups.values():
            with _quiet(), _explained(names):
                self.manager.load(names)

    def run(self, model: Any, tokenizer: Any) -> list[Row]:
        """Run all tasks on a transformers model (adapters injected or not), as it is now."""
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        rows = []
        with _quiet():
            lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self.settings.batch_size)
            for shots, names in self.groups.items():
                with _explained(names):
                    found: Any = simple_evaluate(
                        lm,
                        tasks=names,
                        num_fewshot=shots,
                        limit=self.settings.limit,
                        apply_chat_template=self.settings.chat_template,
                        fewshot_as_multiturn=self.settings.chat_template,
                        batch_size=self.settings.batch_size,
                        task_manager=self.manager,
                        log_samples=True,
                        bootstrap_iters=1000,
                    )
                rows += rows_of(found)
        return rows


def rows_of(found: dict[str, Any]) -> list[Row]:
    """lm-eval's results as rows, groups before their members."""
    depths: dict[str, int] = {}
    for group, members in found.get("group_subtasks", {}).items():
        for member in members:
            if member != group:
                depths[member] = depths.get(group, 0) + 1
    rows = []
    for task, metrics in found["results"].items():
        config = found["configs"].get(task, {})
        for key, value in metrics.items():
            metric, comma, name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{name}")
            split = config.get("test_split") or config.get("validation_split")
            rows.append(
                Row(
                    task=task,
                    title=str(metrics.get("alias", task)).strip(" -"),
                    version=str(found["versions"].get(task, "N/A")),
                    shots=found["n-shot"].get(task),
                    filter=name,
                    metric=metric,
                    dataset={
                        "path": config.get("dataset_path"),
                        "config": config.get("dataset_name"),
                        "split": split,
                    },
                    items=metrics.get("sample_len") or found.get("n-samples", {}).get(task, {}).get("effective"),
                    value=float(value),
                    stderr=float(error) if isinstance(error, int | float) else None,
                    right=_right(found.get("samples", {}).get(task, []), metric, name),
                    depth=depths.get(task, 0),
                )
            )
    return rows


def _right(samples: Sequence[dict[str, Any]], metric: str, filter: str) -> dict[int, bool]:
    """Which items a 0-or-1 metric is 1 of; empty for other metrics."""
    values = {s["doc_id"]: s[metric] for s in samples if s.get("filter") == filter and metric in s}
    if not values or any(value not in (0, 1) for value in values.values()):
        return {}
    return {int(item): bool(value) for item, value in values.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval's log only where something is wrong; its progress bars, and what git says to it, only on a terminal.

    Elsewhere there is a line now and then.
    """
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        if console.is_interactive():
            yield
        else:
            with _nothing_on_stderr(), waiting("answering benchmarks"):
                yield
    finally:
        log.setLevel(level)


@contextmanager
def _nothing_on_stderr() -> Iterator[None]:
    """Whatever a library or a program writes to stderr is lost inside the block; our own talk is not."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere, os.fdopen(os.dup(kept), "w") as still:
            os.dup2(nowhere.fileno(), 2)
            if console.talk().file is sys.stderr:
                console.talk().file = still
            yield
    finally:
        console.talk.cache_clear()
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _explained(names: Sequence[str]) -> Iterator[None]:
    """What lm-eval and datasets raise for a task, as errors of ours."""
    from datasets.exceptions import DatasetsError

    tasks = ", ".join(names)
    try:
        yield
    except (ConnectionError, DatasetsError) as error:
        raise UnavailableError(
            f"the data of {tasks} cannot be had: {first_line(error, 300)}",
            "go online once, so that it is in the cache of `datasets`; HF_HUB_OFFLINE=1 forbids downloads",
        ) from error
    except FileNotFoundError as error:
        raise InputMissingError(f"the data of {tasks} is missing: {first_line(error, 300)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{tasks} cannot be run: {first_line(error, 300)}", "check the task's YAML and data") from error
