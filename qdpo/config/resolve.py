"""From a preset's name and `--set` overrides to one complete, checked configuration that knows its origins."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qdpo.config import fields, presets
from qdpo.config.explain import Source, explain
from qdpo.config.fields import Setting
from qdpo.config.overrides import SET, Override, parse_override
from qdpo.config.problems import SHOWN, Problem, config_error, quoted
from qdpo.config.schema import RunConfig
from qdpo.config.strict_yaml import Document, Path_, dump
from qdpo.redact import redact_all

PLACES = ("model.name", "model.tokenizer", "model.adapter", "data.name", "data.eval_name", "data.text")
"""Settings that may name a file or folder."""
EMBEDDED = "quickstart"
"""The base and the pairs inside qdpo, whatever lies in the current folder under this name."""

DEFAULT = "default"
"""The origin of a value that neither a preset nor an override gives."""


@dataclass(frozen=True)
class Resolved:
    """A complete configuration.

    Attributes:
        config: every value.
        origins: dotted key -> where its value came from: `FILE:LINE` (which file of a chain of `extends:`), `--set`,
            or `default` (the schema's).
    """

    config: RunConfig
    origins: dict[str, str]


def resolve(preset: str, overrides: Sequence[str] = ()) -> Resolved:
    """The configuration that a preset and overrides give.

    A preset's values go over those of the preset that it extends, and overrides over both, setting by setting. A list
    or mapping is replaced as a whole.

    Args:
        preset: a shipped preset's name or a file.
        overrides: `section.key=value` strings, as given to `--set`; of two for one key the later wins.

    Raises:
        ConfigError: with every mistake that was found, each with its file and line.
    """
    chain = presets.load_chain(preset)
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    for document in chain:
        problems += _lay(document, values, sources)
    for text in overrides:
        override = parse_override(text)
        if isinstance(override, Problem):
            problems.append(override)
        else:
            _put(values, override)
            sources[override.key] = Source(SET, text=override.text)
    try:
        config = RunConfig.model_validate(_nested(values))
    except ValidationError as error:
        # A misspelt key also leaves its setting missing; one mistake is reported once.
        problems += explain(error, sources, chain[-1].source, hide_missing=bool(problems))
        config = None
    if config is not None:
        problems += _secrets(config, sources)
    if problems or config is None:
        raise config_error(problems)
    config = _with_whole_paths(config)
    return Resolved(config, {key: _origin(sources.get(key)) for key in fields.settings()})


def to_yaml(resolved: Resolved) -> str:
    """The complete configuration as a preset file, each value with its origin as a comment."""
    lines = [f"# The resolved configuration of `{resolved.config.name}`: every value, and where it came from."]
    section = ""
    for key, setting in fields.settings().items():
        head, _, leaf = key.rpartition(".")
        if head != section:
            lines += ["", f"{head}:"]
            section = head
        lines += _setting_lines(setting, leaf, value_of(resolved.config, key), resolved.origins[key], bool(head))
    return "\n".join(lines) + "\n"


def value_of(config: RunConfig, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _with_whole_paths(config: RunConfig) -> RunConfig:
    """The same, its files and folders named from the root: a run is resumed and exported from other folders too."""
    for key in PLACES:
        section, _, leaf = key.partition(".")
        value = value_of(config, key)
        if value is None or value == EMBEDDED or not Path(value).expanduser().exists():
            continue
        place = os.path.abspath(Path(value).expanduser())
        changed = getattr(config, section).model_copy(update={leaf: place})
        config = config.model_copy(update={section: changed})
    return config


def _secrets(config: RunConfig, sources: dict[str, Source]) -> list[Problem]:
    """Settings that hold an access token: they would be written to config.yaml and to the model card."""
    return [
        Problem(
            sources[key].where if key in sources else DEFAULT,
            f"{key} holds an access token",
            "leave it out; a token belongs in the environment (HF_TOKEN, WANDB_API_KEY), or use `hf auth login`",
        )
        for key in fields.settings()
        if redact_all(value := value_of(config, key)) != value
    ]


def _lay(document: Document, values: dict[str, Any], sources: dict[str, Source]) -> list[Problem]:
    """Put a document's settings over `values` (dotted keys); what is not a setting is a problem."""
    problems = []
    for name, value in document.values.items():
        if name == "extends":
            continue
        entries: dict[str, tuple[Path_, Any]]
        if name not in fields.sections():
            entries = {name: ((name,), value)}
        elif isinstance(value, dict):
            entries = {f"{name}.{leaf}": ((name, leaf), inner) for leaf, inner in value.items()}
        else:
            found = "nothing" if value is None else quoted(value)
            what = f"{name}: expected a section of `key: value` lines, found {found}"
            hint = "remove it, or indent its settings below it" if value is None else None
            problems.append(Problem(document.where((name,)), what, hint))
            continue
        for key, (path, inner) in entries.items():
            if key in fields.settings():
                values[key] = inner
                sources[key] = Source(document.where(path), document, path)
            else:
                what = f"unknown key {quoted(key)}"
                # Those beyond are counted, not shown.
                hint = fields.suggestion(key) if len(problems) < SHOWN else None
                problems.append(Problem(document.where(path), what, hint))
    return problems


def _put(values: dict[str, Any], override: Override) -> None:
    if override.entry is None:
        values[override.key] = override.value
    else:
        before = values.get(override.key)
        values[override.key] = {**(before if isinstance(before, dict) else {}), override.entry: override.value}


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        head, _, leaf = key.rpartition(".")
        (nested.setdefault(head, {}) if head else nested)[leaf] = value
    return nested


def _origin(source: Source | None) -> str:
    return source.where if source else DEFAULT


def _setting_lines(setting: Setting, name: str, value: Any, origin: str, indented: bool) -> list[str]:
    # A line break in a file's name would end the comment.
    comment = f"  # {''.join(c if c.isprintable() else '?' for c in origin)}"
    indent = "  " if indented else ""
    if setting.key == "notes" and value:
        # Notes are sentences: one a line.
        return [f"{indent}{name}:{comment}", *(f"{indent}  - {dump(note)}" for note in value)]
    return [f"{indent}{name}: {dump(value)}{comment}"]
