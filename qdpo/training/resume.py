"""Going on with a run: with what it began with, or with what was changed on purpose.

What a run depends on is in run.json: every setting, the pairs by their fingerprint, the tokenizer and the base by
their hashes, the versions of the libraries. A resume compares all of it with what it finds, as early as it can know
it, and writes nothing before everything was compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdpo import console
from qdpo.config import fields
from qdpo.config.resolve import Resolved, to_yaml, value_of
from qdpo.config.schema import RunConfig
from qdpo.config.strict_yaml import dump
from qdpo.errors import ConfigError, DataError
from qdpo.files import atomic_write
from qdpo.redact import redact_all
from qdpo.run.folder import ADAPTER, CHECKPOINTS, CONFIG, RECORD, read_record, step_of, versions
from qdpo.run.meaning import FREE, NEVER, RESULT, ROUNDING, meaning
from qdpo.run.recipe import with_first_origins
from qdpo.run.record import dig
from qdpo.run.schema import Changed, Record
from qdpo.training import parallel
from qdpo.training.stages.state import RunState

FACTS = {
    "qdpo": RESULT,
    "hardware.kind": RESULT,
    "hardware.name": ROUNDING,
    "data.train.fingerprint": RESULT,
    "data.heldout.fingerprint": RESULT,
    "tokenizer.sha256": RESULT,
    "tokenizer.template_sha256": RESULT,
    "base.weights_sha256": RESULT,
    "base.config_sha256": RESULT,
    "adapter.start_sha256": RESULT,
    "adapter.grids_sha256": RESULT,
    "backend.version": RESULT,
    "dtype.compute": RESULT,
    "quantization.modules": RESULT,
    "engine.way": ROUNDING,
    "engine.attention": ROUNDING,
    "engine.kernel": ROUNDING,
    **{f"versions.{name}": RESULT for name in ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl")},
    # what these do is read, tokenise and write: the fingerprints would show it
    **{f"versions.{name}": FREE for name in ("python", "datasets", "tokenizers", "safetensors")},
}
"""What else a run depends on: the place in run.json, and what a change of it means."""


@dataclass(frozen=True)
class Change:
    """Something that is not as it was when the run began.

    Attributes:
        key: the setting's dotted key, or the place in run.json.
        old: what it was.
        new: what it is.
        verdict: what that means for the result.
    """

    key: str
    old: Any
    new: Any
    verdict: str

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.old)} -> {_shown(self.new)}"


@dataclass
class Comparison:
    """What a resumed run finds, beside what it began with.

    Attributes:
        before: run.json as it was found.
        resolved: the configuration to go on with.
        allowed: keys (or the sections above them) whose changes the user accepts.
        found: the changes up to now.
    """

    before: Record
    resolved: Resolved
    allowed: Sequence[str] = ()
    found: list[Change] = field(default_factory=list)

    def settings(self) -> list[Change]:
        """The settings that differ from those that the run began with."""
        old = self.before.settings or {}
        new = settings_of(self.resolved.config)
        return [
            Change(key, old[key], new[key], _verdict(key, self.resolved.config))
            for key in new
            if key in old and old[key] != new[key]
        ]

    def facts(self, values: dict[str, Any]) -> list[Change]:
        """The facts among new values of run.json that differ from the old ones."""
        before, changes = self.before.as_dict(), []
        for key, verdict in FACTS.items():
            old, new = dig(before, *key.split(".")), dig(values, *key.split("."))
            if key == "versions.trl" and self.resolved.config.engine != "trl":
                verdict = FREE
            if old is not None and new is not None and redact_all(new) != old:
                changes.append(Change(key, old, new, verdict))
        return changes

    def judge(self, changes: Iterable[Change]) -> None:
        """Say what changed.

        Raises:
            ConfigError: some of it would change the result, and is not allowed.
        """
        changes = [change for change in changes if change not in self.found]
        self.found += changes
        refused = [change for change in changes if change.verdict == NEVER]
        refused += [change for change in changes if change.verdict == RESULT and not self._is_allowed(change.key)]
        for change in changes:
            if change not in refused:
                why = "allowed" if change.verdict == RESULT else change.verdict
                console.note(f"changed since the run began: {change} ({why})")
        if not refused:
            return
        told = "; ".join(
            f"{change} ({change.verdict})" if change.verdict == NEVER else str(change) for change in refused
        )
        flags = " ".join(f"--allow-change {change.key}" for change in refused if change.verdict == RESULT)
        some = any(change.verdict == NEVER for change in refused)
        raise ConfigError(
            f"the run began with something else, and going on would change its result: {told}",
            "go on with what it began with, or start a new run" + ("" if some else f"; or accept it: {flags}"),
        )

    def _is_allowed(self, key: str) -> bool:
        return any(key == allowed or key.startswith(f"{allowed}.") for allowed in self.allowed)

    def unused(self) -> list[str]:
        """What was allowed and has not changed."""
        keys = [change.key for change in self.found]
        return [allowed for allowed in self.allowed if not any(f"{key}.".startswith(f"{allowed}.") for key in keys)]


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Every setting by its dotted key, as run.json keeps it."""
    return redact_all({key: value_of(config, key) for key in fields.settings()})


def _verdict(key: str, config: RunConfig) -> str:
    if key == "train.eval_every" and (config.train.load_best != "none" or config.train.early_stop != "none"):
        return RESULT
    return meaning(key)


def _shown(value: Any) -> str:
    text = dump(value)
    return text if len(text) <= 72 else f"{text[:69]}..."


# ---------------------------------------------------------------------------------------------------------- the run


def reopen(run: RunState, resolved: Resolved, allowed: Sequence[str]) -> None:
    """Find where an interrupted run stands, and compare what can be compared at once.

    Args:
        run: gets its record, its checkpoint and what to compare with.
        resolved: the configuration to go on with.
        allowed: keys whose changes the user accepts.

    Raises:
        ConfigError: a setting has changed that would change the result.
        DataError: the run has saved checkpoints, and none of them is whole.
    """
    if (run.folder / RECORD).exists():
        # a run that was killed between its first two files has none, and begins with the new record
        before = read_record(run.folder)
        current: dict[str, Any] = {
            "qdpo": run.record.qdpo,
            "versions": versions(),
            "hardware": {"kind": run.device.kind, "name": run.device.name},
        }
        run.record = Record.model_validate(run.record.as_dict() | before.as_dict())
        run.comparison = Comparison(before, resolved, allowed)
        run.comparison.judge(run.comparison.settings() + run.comparison.facts(current))
        run.record.qdpo = current["qdpo"]
    run.resume = find_checkpoint(run.folder, run.record)
    where = run.resume.name if run.resume else "the beginning: no checkpoint was written yet"
    console.note(f"resuming from {where}")


def find_checkpoint(folder: Path, record: Record) -> Path | None:
    """The newest whole checkpoint of the run; None only for a run that has never saved.

    Raises:
        DataError: the run has saved, and no checkpoint is whole.
    """
    from qdpo.run.checkpoint import newest_whole, whole_checkpoint

    newest = newest_whole(folder / CHECKPOINTS, lambda path: whole_checkpoint(path, record.id))
    saved = record.saved_step or 0
    if newest is None and (saved or record.state == "finished" or (folder / ADAPTER).exists()):
        raise DataError(
            f"the run in {folder} had saved a checkpoint (step {saved}), and there is none any more",
            "put its checkpoints folder back (from a --mirror, say), or start a new run in another directory",
        )
    if newest is not None and newest.name < f"step-{saved:06d}":
        console.warn(f"the run had saved step {saved}; the newest whole checkpoint is {newest.name}")
    return newest


def accept(run: RunState) -> None:
    """Everything was compared: from here on the run goes on with what is now, and run.json may be written again."""
    comparison, run.comparison = run.comparison, None
    if comparison is None:
        return
    for key in comparison.unused():
        console.note(f"--allow-change {key}: nothing of that name has changed")
    if comparison.found:
        step = step_of(run.resume) if run.resume else 0
        told = [{"key": c.key, "old": c.old, "new": c.new} for c in comparison.found]
        run.record.changes = [*(run.record.changes or []), Changed(after_step=step, changed=told)]
        if parallel.is_first():
            atomic_write(run.folder / CONFIG, to_yaml(with_first_origins(run.folder, comparison.resolved)))
    run.save(settings=settings_of(comparison.resolved.config))
