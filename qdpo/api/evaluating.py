"""Evaluating a run, or a base with or without an adapter: on pairs, or on benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdpo import __version__
from qdpo.api.config import Config
from qdpo.config.replace import default_of, elsewhere
from qdpo.errors import InputMissingError
from qdpo.evaluation import harness, judge, run_tasks, tasks
from qdpo.evaluation import run as evaluation
from qdpo.evaluation.subject import Subject, load
from qdpo.progress import Progress
from qdpo.report import told
from qdpo.report.refresh import refresh
from qdpo.run import folder as run_folder
from qdpo.run import trained
from qdpo.run.record import read_run
from qdpo.run.results import read_samples


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and where the result goes.

    Attributes:
        run: the run directory; None for a base without a run.
        model: the base without a run: hub name or local folder.
        adapter: folder of a PEFT adapter on that base.
        out: folder of the JSON; None takes the run's own, and lets its card and report say what was found.
        limit: pairs, or items of each task, at the most.
        overrides: settings that change how model and pairs are read.
    """

    run: Path | None = None
    model: str | None = None
    adapter: Path | None = None
    out: Path | None = None
    limit: int | None = None
    overrides: Sequence[str] = ()

    def writer(self) -> Subject:
        """Load the model, with its adapter, to let it continue prompts.

        Raises:
            QdpoError: model or adapter cannot be had.
        """
        return load(self._config(None), self._adapter(), writes=True)

    def on_pairs(self, pairs: str | None) -> dict[str, Any]:
        """Score the run's own held-out pairs (None), or those of a file or dataset; `keep` writes what is returned.

        Raises:
            QdpoError: model, adapter or data cannot be read.
        """
        config, adapter = self._config(pairs), self._adapter()
        if adapter and not pairs:
            keep = self.run if self.out is None and self.limit is None else None
            return evaluation.evaluate_heldout(config, adapter, self.limit, keep)
        return evaluation.evaluate_pairs(config, adapter, self.limit)

    def on_tasks(
        self, groups: dict[int | None, list[str]], settings: harness.Settings, *, merged: bool = False
    ) -> dict[str, Any]:
        """Run tasks of lm-evaluation-harness; `keep` writes what is returned.

        Args:
            groups: names of tasks by few-shot examples.
            settings: how they are run.
            merged: run the result as merge-export wrote it, not as base and adapter.

        Raises:
            QdpoError: lm-eval, tasks, data, model or adapter cannot be had.
        """
        config = self._config(None)
        if merged and self.run:
            models, found = run_tasks.run_merged(self.run, config, groups, settings)
        else:
            models, found = run_tasks.run_adapter(config, self._adapter(), groups, settings)
        before = tasks.read(folder) if (folder := self._folder()) else None
        return tasks.report(models, found, "merged" if merged else "adapter", settings, before)

    def by_judge(self, url: str, model: str | None = None) -> dict[str, Any]:
        """Let a model compare the answers that base and result wrote at the final adapter; `keep` writes what it says.

        Args:
            url: of a server with OpenAI's chat protocol, up to its version.
            model: the name of its model; None takes the first that it lists.

        Raises:
            InputMissingError: the run wrote no answers.
            QdpoError: the server is not there, or does not answer.
        """
        assert self.run is not None
        answers = told.answers(read_samples(self.run), read_run(self.run).facts.result.adapter_step)
        if answers is None or not answers.step:
            raise InputMissingError(
                f"{self.run} holds no written answers after its start", "train with samples.count above 0"
            )
        rows = answers.rows[: self.limit]
        found = judge.find_judge(url, model)
        with Progress(f"{found.model} compares", len(rows), unit="prompts") as progress:
            said = judge.judge_answers(found, rows, progress.advance)
        return {"schema": 1, "kind": "judge", "created": run_folder.now(), "qdpo": __version__, **said}

    def keep(self, result: dict[str, Any], pairs: str | None = None) -> None:
        """Write a result, and renew the run's card and report.

        Raises:
            OutputError: the folder cannot be written to.
        """
        folder = self._folder()
        if folder is None:
            return
        if "tasks" in result:
            tasks.write(folder, result)
        elif result["kind"] == "judge":
            evaluation.write(folder, run_folder.JUDGE, result)
        else:
            evaluation.write(folder, evaluation.file_name(pairs), result)
        if self.run and self.out is None:
            refresh(self.run)

    def _config(self, pairs: str | None) -> Config:
        """How model and pairs are read: as the run did, or by the schema's defaults, then by the overrides."""
        # one file of pairs is evaluated whole
        changes = [*elsewhere(self.model, pairs), *(["data.max_rows=null"] if pairs else [])]
        if self.run:
            config = Config.load(self.run / run_folder.CONFIG, [*changes, *self.overrides])
            found = trained.where_it_lies(config.model, self.run)
            return config.change({"model.name": found.name, "model.revision": found.revision})
        # the demonstration's own values do not hold for other models
        neutral = [f"{key}={default_of(key)}" for key in ("data.max_prompt_length", "data.max_length", "loss.beta")]
        return Config.load("quickstart", [*changes, *neutral, "data.text=null", *self.overrides])

    def _adapter(self) -> Path | None:
        return trained.adapter_of(self.run) if self.run else self.adapter

    def _folder(self) -> Path | None:
        return self.out or (self.run / run_folder.EVALUATION if self.run else None)
