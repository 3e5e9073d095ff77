"""What the facts of a run come to: what it is called, what was changed of its preset, what its answers show, what next.

Card and page say the same, so it is said here once. Texts are as in `qdpo.report.facts`: whoever shows them escapes
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qdpo.config import fields
from qdpo.config.resolve import PLACES, value_of
from qdpo.config.strict_yaml import dump
from qdpo.report import markdown as md

if TYPE_CHECKING:
    from qdpo.report.facts import Facts

EXAMPLES = 2
"""Answers that are shown beside the base's before all others."""


@dataclass(frozen=True)
class Change:
    """A setting that is not its preset's.

    Attributes:
        key: dotted.
        value: in YAML, a path by its last component.
    """

    key: str
    value: str


@dataclass(frozen=True)
class Later:
    """What a resume changed.

    Attributes:
        step: after which step.
        key: a setting's dotted key, or a place in run.json.
        old, new: in YAML, a path by its last component.
    """

    step: int | None
    key: str
    old: str
    new: str


@dataclass(frozen=True)
class Answers:
    """The sample answers of the final adapter, the newest ones while there is none.

    Attributes:
        step: of the adapter that answered.
        rows: lines of samples.jsonl.
    """

    step: int
    rows: list[dict[str, Any]]

    @property
    def changed(self) -> list[dict[str, Any]]:
        """Those that differ from the base's answer."""
        return [row for row in self.rows if row["policy"] != row["base"]]

    @property
    def examples(self) -> list[dict[str, Any]]:
        """The first that differ from the base's."""
        return self.changed[:EXAMPLES]


@dataclass(frozen=True)
class Next:
    """What can be done next.

    Attributes:
        what: in words.
        command: that does it, with DIR for the run directory; empty where there is none.
    """

    what: str
    command: str


def title(run: Facts) -> str:
    """The run's name; where that is the name of a preset for another model or other pairs, one of what was trained."""
    return run.name if run.recipe.named is not False else f"{run.base.name} tuned on {run.training.name}"


def changes(run: Facts) -> list[Change]:
    """The settings that were given after its preset's description."""
    known = [key for key in run.recipe.changed or () if key in fields.settings()]
    return [Change(key, shown(key, value_of(run.config, key))) for key in known]


def later_changes(run: Facts) -> list[Later]:
    """What resumes changed, in their order."""
    return [
        Later(found.after_step, key, shown(key, entry.get("old")), shown(key, entry.get("new")))
        for found in run.record.changes or ()
        for entry in found.changed or ()
        for key in [str(entry.get("key"))]
    ]


def answers(rows: Sequence[dict[str, Any]], adapter_step: int | None) -> Answers | None:
    """The answers of the final adapter, else the newest ones; None where none were taken."""
    if not rows:
        return None
    steps = [row["step"] for row in rows]
    step = adapter_step if adapter_step is not None and adapter_step in steps else steps[-1]
    return Answers(step, [row for row in rows if row["step"] == step])


def next_steps(run: Facts) -> list[Next]:
    """What can be done with the run now, the first thing first."""
    if run.record.state != "finished":
        watch = (
            [Next("watch it while it trains", "qdpo report --run DIR --serve")] if run.record.state == "running" else []
        )
        return [*watch, Next("go on where it was stopped", "qdpo train --run-dir DIR --resume")]
    steps = [Next(f"train anew: {verdict.change}", "") for verdict in run.verdicts if verdict.alarm and verdict.change]
    steps.append(Next("read what it writes, beside its base", "qdpo chat --run DIR --compare"))
    if not run.evaluations:
        steps.append(Next("score base and result, with intervals", "qdpo eval --run DIR"))
    if not run.exports:
        steps.append(Next("make a file for llama.cpp, and measure it", "qdpo merge-export --run DIR --format gguf"))
    steps.append(Next("publish the adapter with its card", "qdpo push --run DIR --to USER/NAME"))
    return steps


def shown(key: str, value: Any) -> str:
    """A value in YAML; a file or folder by its last component."""
    if key in PLACES and isinstance(value, str):
        return md.public_name(value)
    return md.without_folders(value if isinstance(value, str) else dump(value))
