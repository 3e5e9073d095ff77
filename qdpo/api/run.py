"""A run, for Python: what it measured, what that means, and what can be done with its result."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdpo import notebook
from qdpo.api.config import Config, Overrides, texts_of
from qdpo.api.metrics import Metrics
from qdpo.api.process import borrowed
from qdpo.run import folder as run_folder
from qdpo.run.record import read_run

if TYPE_CHECKING:
    from qdpo.api.exporting import Export
    from qdpo.evaluation.written import Written
    from qdpo.export.formats import Layout, Way
    from qdpo.export.source import MergeBase
    from qdpo.verdicts.rules import Verdict


@dataclass(frozen=True)
class Run:
    """A run directory. Everything is read anew when it is asked for, also while the run still trains.

    Attributes:
        path: the run directory.
    """

    path: Path

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """A run that was made before, here or by `qdpo train`.

        Raises:
            InputMissingError: there is no run in the folder.
        """
        return cls(run_folder.existing(os.fspath(path)))

    @property
    def config(self) -> Config:
        """The configuration that it was made with, every value with its type."""
        return Config.load(self.path / run_folder.CONFIG)

    @property
    def state(self) -> str:
        """`finished`, `running`, `stopped` (by a signal), `interrupted` (it ended without a word), or `damaged`."""
        return str(self.summary["state"])

    @property
    def summary(self) -> dict[str, Any]:
        """The run in a few values: state, base, data, steps, results before and after; what is not known is None."""
        from qdpo.evaluation.runs import describe

        return describe(self.path)

    @property
    def metrics(self) -> Metrics:
        """What was measured, a row a logged step or evaluation.

        Raises:
            InputMissingError: a file of the run cannot be read.
        """
        return Metrics.of(read_run(self.path))

    @property
    def card(self) -> str:
        """The model card anew: Markdown, with its front matter."""
        from qdpo.report.card import render_card

        return render_card(self.path)

    def verdicts(self) -> list[Verdict]:
        """What the curves mean, with the numbers that each finding rests on and the setting to change.

        Raises:
            InputMissingError: a file of the run cannot be read.
        """
        from qdpo.verdicts.measured import evidence_of
        from qdpo.verdicts.rules import judge

        return judge(evidence_of(read_run(self.path)))

    def written(self) -> list[Written]:
        """What base and policy wrote at each evaluation, in numbers: broken, ended, right, near to which side.

        Raises:
            InputMissingError: a file of the run cannot be read.
        """
        from qdpo.evaluation.written import written_of
        from qdpo.run.results import read_samples

        return written_of(read_samples(self.path))

    def report(self) -> Path:
        """Draw the plots and write card and report page anew; returns the page, one HTML file."""
        from qdpo.report.card import write_card
        from qdpo.report.page import write_page
        from qdpo.report.plots import draw_plots

        draw_plots(self.path)
        write_card(self.path)
        return write_page(self.path)

    def plot(self) -> list[Path]:
        """Draw loss, rewards and accuracies; in a notebook they are shown. Returns the PNG files."""
        from qdpo.report.plots import draw_plots

        files = draw_plots(self.path)
        notebook.show_images(files)
        return files

    def evaluate(
        self,
        pairs: str | os.PathLike[str] | None = None,
        *,
        tasks: Sequence[str] = (),
        benchmark: str | None = None,
        shots: int | None = None,
        limit: int | None = None,
        overrides: Overrides = None,
        judge: str | None = None,
        judge_model: str | None = None,
    ) -> dict[str, Any]:
        """Score base and result, write the JSON into the run directory, and renew card and report.

        Args:
            pairs: other preference pairs, a file or hub name; None scores the run's own held-out pairs.
            tasks: names of tasks of lm-evaluation-harness to run instead.
            benchmark: a set of tasks with their shots to run instead: `open-llm-v1`.
            shots: few-shot examples of `tasks`; None takes each task's own.
            limit: pairs, written answers, or items of each task, at the most.
            overrides: how pairs are read (`data.` with `pairs`) and scored (`packing.`).
            judge: let the model at this address (OpenAI's chat protocol) compare the written answers instead.
            judge_model: its name; None takes the first that the server lists.

        Returns:
            What the JSON holds; docs/evaluation.md describes it.

        Raises:
            QdpoError: model, adapter, data or tasks cannot be had.
        """
        from qdpo.api.evaluating import Evaluation
        from qdpo.evaluation import harness, run_tasks

        wanted = None if pairs is None else os.fspath(pairs)
        with borrowed():
            evaluation = Evaluation(self.path, limit=limit, overrides=texts_of(overrides))
            if judge is not None:
                result = evaluation.by_judge(judge, judge_model)
            elif tasks or benchmark:
                harness.check_installed()
                groups = run_tasks.groups_of(tasks, shots, benchmark)
                result = evaluation.on_tasks(groups, harness.Settings(limit=limit))
            else:
                result = evaluation.on_pairs(wanted)
            evaluation.keep(result, wanted)
        return result

    def export(
        self,
        format: str = "safetensors",
        *,
        quant: str | Sequence[str] = (),
        out: str | os.PathLike[str] | None = None,
        merge_base: MergeBase = "trained",
        dtype: str | None = None,
        awq_layout: Layout | None = None,
        rounding: Way | None = None,
        imatrix: str | os.PathLike[str] | None = None,
        pick: bool = False,
        pairs: int | None = None,
    ) -> Export:
        """Merge the adapter into its base and write the model for other programs.

        >>> run.export("gguf", quant="q4_k_m").verify()  # doctest: +SKIP
        <Proof: passed>

        Args:
            format: `safetensors`, `gguf`, `gguf-lora`, `awq` or `ollama`.
            quant: GGUF types, one or several: a file each (default: q4_k_m).
            out: the folder; None takes `RUN/export/FORMAT`.
            merge_base: `trained` merges into the dequantised 4-bit base, which reproduces the trained policy;
                `original` into the 16-bit base.
            dtype: of safetensors: `bfloat16`, `float16` or `float32`; None keeps the base's own.
            awq_layout: of awq: `compressed-tensors` (None) or `autoawq`.
            rounding: of safetensors and GGUF types: `feedback` makes up for errors column by column, `nearest` rounds
                each weight by itself; None takes feedback where the run has moments of its layers' inputs.
            imatrix: of GGUF types: which errors count more when scales are found: `auto` (None: by the moments),
                `none`, or a file of llama.cpp's llama-imatrix.
            pick: try the types of `quant`, and keep the smallest that does what was trained.
            pairs: held-out pairs that `pick` scores; None takes the run's `verify.pairs`.

        Returns:
            The export. It has not been scored: `verify` does that.

        Raises:
            UsageError: an option does not belong to the format.
            QdpoError: the run cannot be read, or the export cannot be written.
        """
        from qdpo.api.exporting import write

        with borrowed():
            return write(
                self.path,
                format,
                quants=(quant,) if isinstance(quant, str) else tuple(quant),
                out=out,
                merge_base=merge_base,
                dtype=dtype,
                awq_layout=awq_layout,
                rounding=rounding,
                imatrix=imatrix,
                pick=pick,
                pairs=pairs,
            )

    def answer(self, prompt: str, *, base: bool = False, max_new_tokens: int = 256, temperature: float = 0.0) -> str:
        """Let the result answer a message; the model is loaded for it, which takes its time.

        Args:
            prompt: what the user says.
            base: let the base answer instead, for comparison.
            max_new_tokens: length of the answer at the most.
            temperature: 0 takes the likeliest token, above 0 samples.

        Raises:
            InputMissingError: the run has no adapter yet.
        """
        from qdpo.data.pairs import Message
        from qdpo.evaluation.chat import Sampling, answer, note_special_text
        from qdpo.libraries import quiet_libraries
        from qdpo.run.trained import load_trained

        with borrowed():
            quiet_libraries()
            trained = load_trained(self.path)
            note_special_text(trained, prompt)
            sampling = Sampling(max_new_tokens, temperature, 0.95, 42)
            return "".join(answer(trained, [Message("user", prompt)], sampling, base=base))

    def _repr_html_(self) -> str:
        """What a notebook shows: what ran, results before and after, and the curves."""
        found = self.summary
        rows = {name: str(found[name]) for name in ("state", "base", "data", "step") if found.get(name) is not None}
        for name, after in found.get("after", {}).items():
            before = found["before"].get(name)
            if isinstance(after, int | float):
                rows[name.replace("_", " ")] = f"{after:.4g}" if before is None else f"{before:.4g} → {after:.4g}"
        return notebook.page(str(self.path), rows, sorted((self.path / "plots").glob("*.png")))
