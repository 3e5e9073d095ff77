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
from qdpo.report import markdown as md
from qdpo.run.record import Published, RunRecord, all_ties, dig, read_run
from qdpo.run.results import HELDOUT, read_evaluations, read_exports, read_pairs, read_samples
from qdpo.verdicts.measured import evidence_of
from qdpo.verdicts.rules import Verdict, judge

EMBEDDED = "quickstart"
"""The name of the base model and of the pairs that ship inside qdpo."""

TASKS = "tasks.json"
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
    weights_sha256: str | None
    parameters: float | None
    architecture: str | None
    license: str | None


@dataclass(frozen=True)
class Nf4:
    """The 4-bit type of the base: weights in a block, and whether the blocks' scales are quantized too."""

    blocksize: float | None
    double_quant: bool


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
class Machine:
    """What the run computed on: memory in bytes, the type it computed in and why."""

    kind: str | None
    name: str | None
    capability: str | None
    memory: float | None
    dtype: str | None
    reason: str | None


@dataclass(frozen=True)
class Outcome:
    """What the training came to: peak memory in bytes, the step that the adapter comes from."""

    seconds: float | None
    steps: float | None
    epochs: float | None
    tokens: float | None
    peak_memory: float | None
    adapter_step: int | None
    adapter_sha256: str | None


@dataclass(frozen=True)
class Export:
    """A whole export below export/: format, files, the command that makes it, and verify.json where there is one."""

    format: str
    files: list[str]
    command: str
    verify: dict[str, Any] | None


@dataclass(frozen=True)
class Facts:
    """A run.

    Attributes:
        folder: the run directory.
        published: the repository that the card is for; None for the run directory itself.
        nf4: how the base was held in training; None when it was held as stored.
        adapter_layers, adapter_parameters: what was trained.
        train, evals: the lines of metrics.jsonl, evaluations without `eval_`.
        before, after: the evaluations of step 0 and of the final adapter; empty where there is none.
    """

    folder: Path
    published: Published | None
    config: RunConfig
    name: str
    state: str
    created: str | None
    command: str | None
    qdpo: str | None
    seed: Any
    base: Base
    nf4: Nf4 | None
    adapter_layers: float | None
    adapter_parameters: float | None
    template_sha256: str | None
    training: Part
    heldout: Part
    optimizer: tuple[str, str]
    machine: Machine
    outcome: Outcome
    versions: Mapping[str, Any]
    checks: list[tuple[str, str]]
    train: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    before: dict[str, Any]
    after: dict[str, Any]
    verdicts: list[Verdict]

    @property
    def merged(self) -> bool:
        """Whether what is published holds the base's weights too, and not the adapter alone."""
        return self.published is not None and self.published.format not in ("adapter", "gguf-lora")

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
    def evaluations(self) -> dict[str, dict[str, Any]]:
        """The results of `qdpo eval` by file name, held-out pairs first."""
        return dict(sorted(read_evaluations(self.folder).items(), key=lambda entry: entry[0] != HELDOUT))

    @cached_property
    def exports(self) -> list[Export]:
        """All exports, or the published one."""
        found = read_exports(self.folder)
        if self.published is not None:
            found = {name: entry for name, entry in found.items() if name == self.published.format}
        return [_export(name, entry) for name, entry in found.items()]

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
    config, run = record.config, record.run
    checks = [entry for entry in run.get("checks") or [] if isinstance(entry, dict) and entry.get("name")]
    return Facts(
        folder=run_dir,
        published=published,
        config=config,
        name=record.name,
        state=_text(run, "state") or "unknown",
        created=_text(run, "created"),
        command=_text(run, "command"),
        qdpo=_text(run, "qdpo"),
        seed=run.get("seed"),
        base=_base(record),
        nf4=_nf4(run.get("quantization")),
        adapter_layers=_number(run, "adapter", "modules"),
        adapter_parameters=_number(run, "adapter", "trainable_parameters"),
        template_sha256=_text(run, "tokenizer", "template_sha256"),
        training=_part(record, "train", config.data.name),
        heldout=_part(record, "heldout", config.data.eval_name or config.data.name),
        optimizer=_optimizer(record),
        machine=_machine(run),
        outcome=_outcome(record),
        versions={"qdpo": run.get("qdpo"), **_mapping(run, "versions")},
        checks=[(str(entry["name"]), str(entry.get("detail") or "")) for entry in checks],
        train=record.train,
        evals=record.evals,
        before=record.before,
        after=record.after,
        verdicts=judge(evidence_of(record)) if record.train or record.evals else [],
    )


def name_on_hub(name: str) -> bool:
    """Whether the public name of a dataset is one of the hub's: a namespace and a name."""
    return name != EMBEDDED and "/" in name and not md.is_local(name)


def _text(value: Any, *keys: str) -> str | None:
    found = dig(value, *keys)
    return str(found) if found else None


def _number(value: Any, *keys: str) -> float | None:
    return md.number(dig(value, *keys))


def _mapping(value: Any, *keys: str) -> dict[str, Any]:
    found = dig(value, *keys)
    return found if isinstance(found, dict) else {}


def _base(record: RunRecord) -> Base:
    run = record.run
    name, revision = str(dig(run, "base", "name") or record.config.model.name), dig(run, "base", "revision")
    commit = revision if isinstance(revision, str) and re.fullmatch(r"[0-9a-f]{40}", revision) else None
    on_hub = commit is not None and not md.is_local(name)
    stated = dig(run, "base", "license")
    return Base(
        name=md.one_line(name) if on_hub else md.last_component(md.one_line(name)),
        on_hub=on_hub,
        embedded=name == EMBEDDED,
        revision=commit,
        weights_sha256=_text(run, "base", "weights_sha256"),
        parameters=_number(run, "base", "parameters"),
        architecture=_text(run, "base", "architecture"),
        license=stated if isinstance(stated, str) and stated.strip() else None,
    )


def _nf4(quantization: Any) -> Nf4 | None:
    if dig(quantization, "method") != "nf4":
        return None
    return Nf4(_number(quantization, "blocksize"), bool(dig(quantization, "double_quant")))


def _part(record: RunRecord, key: str, configured: str | None) -> Part:
    written, run = record.data.get(key), dig(record.run, "data", key)
    name, used = md.public_name(dig(run, "name") or configured), _number(written, "pairs")
    remarks, contamination = _findings(written)
    return Part(
        name=name,
        on_hub=name_on_hub(name),
        embedded=name == EMBEDDED,
        split=_text(run, "split"),
        fingerprint=_text(run, "fingerprint"),
        reported=isinstance(written, dict) and bool(written),
        format=_text(written, "format"),
        rows_read=_number(written, "rows_read"),
        pairs=used if used is not None else _number(run, "pairs"),
        left_out=_left_out(dig(written, "left_out")),
        cut=_mapping(written, "cut"),
        tokens={field: found for field, found in _mapping(written, "tokens").items() if isinstance(found, dict)},
        remarks=remarks,
        contamination=contamination,
    )


def _left_out(reasons: Any) -> dict[str, Dropped] | None:
    if not isinstance(reasons, dict):
        return None
    return {
        reason: Dropped(_number(entry, "count"), list(dig(entry, "first_rows") or []))
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
    name = str(record.config.train.optim)
    if used := _text(record.run, "optimizer", "name"):
        return used, _text(record.run, "optimizer", "reason") or ""
    on_cpu = dig(record.run, "hardware", "kind") == "cpu"
    return name, "without paging, which needs CUDA" if on_cpu and name.startswith("paged") else ""


def _machine(run: Mapping[str, Any]) -> Machine:
    capability = dig(run, "hardware", "capability")
    return Machine(
        kind=_text(run, "hardware", "kind"),
        name=_text(run, "hardware", "name"),
        capability=".".join(map(str, capability)) if isinstance(capability, list) else None,
        memory=_number(run, "hardware", "memory_bytes"),
        dtype=_text(run, "dtype", "compute"),
        reason=_text(run, "dtype", "reason"),
    )


def _outcome(record: RunRecord) -> Outcome:
    result = record.run.get("result")
    return Outcome(
        seconds=_number(result, "seconds"),
        steps=_number(result, "steps"),
        epochs=_number(result, "epochs"),
        tokens=_number(result, "tokens"),
        peak_memory=_number(result, "peak_memory_bytes"),
        adapter_step=record.adapter_step,
        adapter_sha256=_text(result, "adapter_sha256"),
    )


def _export(name: str, entry: Mapping[str, Any]) -> Export:
    files = entry.get("files") or {}
    words = ["qdpo", "merge-export", "--run", "DIR", "--format", name]
    if entry.get("merge_base") == "original":
        words += ["--merge-base", "original"]
    if name == "safetensors" and isinstance(entry.get("dtype"), str) and entry["dtype"] != dig(entry, "base", "dtype"):
        words += ["--dtype", entry["dtype"]]
    if kinds := [kind.lower() for kind in files.values() if isinstance(kind, str)]:
        words += ["--quant", ",".join(kinds)]
    return Export(name, list(files), shlex.join(words), entry.get("verify") or None)
