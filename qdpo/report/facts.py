"""What a run's directory says, gathered once: the card, the page and the plots are made from this object alone.

Texts are as the files hold them, except for names of models and datasets, which are freed of folders here; whoever
shows a text escapes it. What a file does not say is None.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qdpo.config.schema import RunConfig
from qdpo.data.report import DataReport, contamination_sentence
from qdpo.evaluation.written import Written, written_of
from qdpo.export.formats import FORMATS, Place, Usage
from qdpo.export.verify.report import VERDICTS
from qdpo.report import markdown as md
from qdpo.report import told
from qdpo.run.folder import HELDOUT
from qdpo.run.recipe import read_recipe
from qdpo.run.record import Published, RunRecord, all_ties, dig, read_run
from qdpo.run.results import read_evaluations, read_exports, read_pairs, read_samples
from qdpo.run.schema import Recipe, Record, Split
from qdpo.verdicts.measured import evidence_of, planned_steps
from qdpo.verdicts.rules import Verdict, judge

EMBEDDED = "quickstart"
"""The name of the base model and of the pairs that ship inside qdpo."""

PLOTS = (
    ("loss.png", "Loss over steps, training and held-out"),
    ("rewards.png", "Rewards of chosen and rejected completions and their margin over steps"),
    ("accuracies.png", "Share of pairs whose chosen completion has the higher reward, over steps"),
)


@dataclass(frozen=True)
class Base:
    """The model that was trained on.

    Attributes:
        name: on the hub, or the last component of its folder.
        on_hub: whether it came from the hub: only then is there a commit.
        embedded: whether it is the demonstration model inside qdpo.
        revision: its hub commit, 40 hex.
    """

    name: str
    on_hub: bool
    embedded: bool
    revision: str | None


@dataclass(frozen=True)
class Dropped:
    """Rows that were left out for one reason: how many, and the first of them by number."""

    count: float | None
    first_rows: list[Any]


@dataclass(frozen=True)
class Part:
    """The training pairs, or the held-out pairs.

    Attributes:
        name: on the hub, or the last component of a path.
        on_hub: whether the name is one of the hub's: a namespace and a name.
        embedded: whether they are the demonstration pairs inside qdpo.
        reported: whether data_report.json has something on them.
        left_out: by reason; None when it is not known.
        cut: sequences that were cut to length, by kind.
        tokens: min, median, p95 and max by prompt, chosen, rejected.
        remarks: what the data report remarks on, without what is said of contamination.
        contamination: a sentence for each evaluation set that the pairs were compared with.
    """

    name: str
    on_hub: bool
    embedded: bool
    split: str | None
    fingerprint: str | None
    reported: bool
    format: str | None
    rows_read: float | None
    pairs: float | None
    left_out: Mapping[str, Dropped] | None
    cut: Mapping[str, Any]
    tokens: Mapping[str, Mapping[str, Any]]
    remarks: list[str]
    contamination: list[str]

    @property
    def rows_left_out(self) -> float | None:
        """For all reasons together."""
        return None if self.left_out is None else sum(entry.count or 0 for entry in self.left_out.values())


@dataclass(frozen=True)
class Export:
    """A whole export below export/.

    Attributes:
        title: its heading on the card.
        usage: how it is used, where the card will be read; None of a format that this version does not know.
        command: what makes it again.
        verify: the contents of verify.json, where there is one.
    """

    format: str
    title: str
    usage: Usage | None
    command: str
    verify: dict[str, Any] | None

    @property
    def verdict(self) -> str:
        """What its verification has found, in a word for each of its artefacts."""
        found = dig(self.verify, "artefacts") if self.verify else None
        if not isinstance(found, list):
            return "not verified"
        words = dict.fromkeys(VERDICTS.get(str(dig(artefact, "verdict")), "?") for artefact in found)
        return ", ".join(words) or "not verified"


@dataclass(frozen=True)
class Facts:
    """A run.

    Attributes:
        folder: the run directory.
        published: the repository that the card is for; None for the run directory itself.
        record: what ran, where, and with which result (run.json).
        recipe: the preset that describes itself, and what of it was changed.
        train, evals: the lines of metrics.jsonl, evaluations without `eval_`.
        planned: optimizer steps of the whole run; 0 where they are not known.
        before, after: the evaluations of step 0 and of the final adapter; empty where there is none.
    """

    folder: Path
    published: Published | None
    config: RunConfig
    record: Record
    recipe: Recipe
    name: str
    base: Base
    training: Part
    heldout: Part
    optimizer: tuple[str, str]
    planned: int
    train: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    before: dict[str, Any]
    after: dict[str, Any]
    verdicts: list[Verdict]

    @property
    def title(self) -> str:
        """What the run is called where it is described."""
        return told.title(self)

    @property
    def about(self) -> str | None:
        """The recipe in a line, if it is this run's."""
        return None if self.recipe.changed else self.config.about

    @property
    def notes(self) -> list[str]:
        """The notes on the recipe, if they are still about this run."""
        return self.config.notes if self.recipe.noted is not False else []

    @cached_property
    def changes(self) -> list[told.Change]:
        """The settings that were given after the preset's description."""
        return told.changes(self)

    @cached_property
    def later_changes(self) -> list[told.Later]:
        """What resumes changed."""
        return told.later_changes(self)

    @cached_property
    def answers(self) -> told.Answers | None:
        """The sample answers of the final adapter, else the newest ones; None where none were taken."""
        return told.answers(self.samples, self.record.result.adapter_step)

    @cached_property
    def next_steps(self) -> list[told.Next]:
        """What can be done with the run now."""
        return told.next_steps(self)

    @property
    def commands(self) -> list[str]:
        """The command lines of the run's processes, each once, in their order."""
        found = [self.record.command, *(process.command for process in self.record.processes or ())]
        return list(dict.fromkeys(command for command in found if command))

    @property
    def steps(self) -> int | None:
        """Optimizer steps done: of a finished run its own, else the newest that is known."""
        if self.record.result.steps is not None:
            return self.record.result.steps
        return max((int(row["step"]) for row in [*self.train, *self.evals]), default=None)

    @property
    def merged(self) -> bool:
        """Whether what is published holds the base's weights too, and not the adapter alone."""
        return self.published is not None and self.published.format not in ("adapter", "gguf-lora")

    @property
    def nf4(self) -> bool:
        """Whether the base was held in 4-bit NF4 in training."""
        return self.record.quantization.method == "nf4"

    @property
    def ties_before(self) -> bool:
        """Whether no pair is won or lost before training, so that its accuracy says nothing."""
        return all_ties(self.before)

    @property
    def plots(self) -> list[tuple[str, str]]:
        """File and title of the plots that were drawn."""
        return [(name, title) for name, title in PLOTS if (self.folder / "plots" / name).is_file()]

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """The lines of samples.jsonl: step, prompt, base, policy."""
        return read_samples(self.folder)

    @cached_property
    def written(self) -> list[Written]:
        """The answers of each evaluation in numbers."""
        return written_of(self.samples)

    @cached_property
    def evaluations(self) -> dict[str, dict[str, Any]]:
        """The results of `qdpo eval` by file name, held-out pairs first."""
        return dict(sorted(read_evaluations(self.folder).items(), key=lambda entry: entry[0] != HELDOUT))

    @cached_property
    def exports(self) -> list[Export]:
        """All exports, or the published one."""
        found = read_exports(self.folder)
        if self.published is not None:
            found = {name: entry for name, entry in found.items() if name == self.published.format}
        return [self._export(name, entry) for name, entry in found.items()]

    def _export(self, name: str, entry: Mapping[str, Any]) -> Export:
        format, model = FORMATS.get(name), md.one_line(self.name)
        place = Place(
            folder=model if self.published else f"export/{name}",
            files=tuple(entry.get("files") or ()),
            model=model,
            repo=self.published.repo if self.published else None,
        )
        return Export(
            name,
            title=format.title if format else name,
            usage=format.usage(place) if format else None,
            command=_command(name, entry),
            verify=entry.get("verify") or None,
        )

    @cached_property
    def pairs(self) -> list[dict[str, Any]]:
        """The scored held-out pairs in the order of their margins."""
        return sorted(read_pairs(self.folder), key=lambda pair: float(pair["margin"]))

    def training_loss(self, step: int) -> Any:
        """The last loss that was logged at or before a step; None before the first."""
        return next((row["loss"] for row in reversed(self.train) if row["step"] <= step and "loss" in row), None)


def gather(run_dir: Path, published: Published | None = None) -> Facts:
    """The facts of a run, from the files in its directory.

    Raises:
        InputMissingError: the folder is not a run directory, or a file in it cannot be understood.
    """
    record = read_run(run_dir)
    config, data = record.config, record.facts.data
    return Facts(
        folder=run_dir,
        published=published,
        config=config,
        record=record.facts,
        recipe=read_recipe(run_dir, config, record.facts),
        name=record.name,
        base=_base(record),
        training=_part(data.train, record.data.get("train"), config.data.name),
        heldout=_part(data.heldout, record.data.get("heldout"), config.data.eval_name or config.data.name),
        optimizer=_optimizer(record),
        planned=planned_steps(record),
        train=record.train,
        evals=record.evals,
        before=record.before,
        after=record.after,
        verdicts=judge(evidence_of(record)) if record.train or record.evals else [],
    )


def name_on_hub(name: str) -> bool:
    """Whether the public name of a dataset is one of the hub's: a namespace and a name."""
    return name != EMBEDDED and "/" in name and not md.is_local(name)


def _base(record: RunRecord) -> Base:
    found = record.facts.base
    name = found.name or record.config.model.name
    commit = found.revision if re.fullmatch(r"[0-9a-f]{40}", found.revision or "") else None
    on_hub = commit is not None and not md.is_local(name)
    return Base(
        name=md.one_line(name) if on_hub else md.last_component(md.one_line(name)),
        on_hub=on_hub,
        embedded=name == EMBEDDED,
        revision=commit,
    )


def _part(split: Split, written: Any, configured: str | None) -> Part:
    name, used = md.public_name(split.name or configured), md.number(dig(written, "pairs"))
    remarks, contamination = _findings(written)
    return Part(
        name=name,
        on_hub=name_on_hub(name),
        embedded=name == EMBEDDED,
        split=split.split,
        fingerprint=split.fingerprint,
        reported=isinstance(written, dict) and bool(written),
        format=dig(written, "format") or None,
        rows_read=md.number(dig(written, "rows_read")),
        pairs=used if used is not None else split.pairs,
        left_out=_left_out(dig(written, "left_out")),
        cut=_mapping(written, "cut"),
        tokens={field: found for field, found in _mapping(written, "tokens").items() if isinstance(found, dict)},
        remarks=remarks,
        contamination=contamination,
    )


def _mapping(value: Any, key: str) -> dict[str, Any]:
    found = dig(value, key)
    return found if isinstance(found, dict) else {}


def _left_out(reasons: Any) -> dict[str, Dropped] | None:
    if not isinstance(reasons, dict):
        return None
    return {
        reason: Dropped(md.number(dig(entry, "count")), list(dig(entry, "first_rows") or []))
        for reason, entry in reasons.items()
    }


def _findings(written: Any) -> tuple[list[str], list[str]]:
    """What the data report remarks on, and what of evaluation sets the pairs touch, in plain words."""
    try:
        report = DataReport.from_dict(written)
        about = list(dict.fromkeys(map(contamination_sentence, report.contamination)))
        return [remark for remark in dict.fromkeys(report.remarks()) if remark not in about], about
    except (AttributeError, LookupError, TypeError, ValueError):
        return [], []  # none, or a report of another version


def _optimizer(record: RunRecord) -> tuple[str, str]:
    """Its name, and why it is another one than configured."""
    configured, used = str(record.config.train.optim), record.facts.optimizer
    if used.name:
        return used.name, used.reason or ""
    on_cpu = record.facts.hardware.kind == "cpu"
    return configured, "without paging, which needs CUDA" if on_cpu and configured.startswith("paged") else ""


def _command(name: str, entry: Mapping[str, Any]) -> str:
    words = ["qdpo", "merge-export", "--run", "DIR", "--format", name]
    if entry.get("merge_base") == "original":
        words += ["--merge-base", "original"]
    if name == "safetensors" and isinstance(entry.get("dtype"), str) and entry["dtype"] != dig(entry, "base", "dtype"):
        words += ["--dtype", entry["dtype"]]
    if kinds := [kind.lower() for kind in (entry.get("files") or {}).values() if isinstance(kind, str)]:
        words += ["--quant", ",".join(kinds)]
    return shlex.join(words)
