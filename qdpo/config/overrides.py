"""`--set section.key=value`: one setting, given on the command line.

Values are read by YAML 1.2's rules, in which `5e-6` is a number and `yes`, `no`, `on`, `off` are text. Where the
setting is text, the value is taken as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from qdpo.config import fields, strict_yaml
from qdpo.config.fields import Setting
from qdpo.config.problems import Problem, quoted
from qdpo.errors import ConfigError

SET = "--set"
"""The origin of an override, and how messages name it."""


@dataclass(frozen=True)
class Override:
    """One setting's new value.

    Attributes:
        key: the setting's dotted key.
        entry: the entry of a mapping setting (`data.columns.prompt=question`); None for the whole setting.
        value: plain data, not yet checked against the schema.
        text: the value as it was given.
    """

    key: str
    entry: str | None
    value: Any
    text: str


def parse_override(argument: str) -> Override | Problem:
    """Read `section.key=value`; a `Problem` says what is wrong with it."""
    where = f"{SET} {quoted(argument, 80)}"
    key, equals, text = argument.partition("=")
    key = key.strip()
    if not equals or not key:
        hint = "such as --set train.learning_rate=5e-6"
        return Problem(where, "expected section.key=value", hint)
    if strict_yaml.FORBIDDEN.search(text):
        return Problem(where, "the value has a character that is not text")
    setting, entry = _find(key)
    if setting is None:
        return _unknown(where, key)
    try:
        value = _read(setting, entry, text)
    except ConfigError as error:
        return Problem(where, error.message, error.hint)
    return Override(setting.key, entry, value, text)


def _find(key: str) -> tuple[Setting | None, str | None]:
    settings = fields.settings()
    if key in settings:
        return settings[key], None
    head, _, entry = key.rpartition(".")
    if entry and head in settings and settings[head].kind is dict:
        return settings[head], entry
    return None, None


def _unknown(where: str, key: str) -> Problem:
    if key in fields.sections():
        inside = [name for name in fields.settings() if name.startswith(f"{key}.")]
        return Problem(where, f"{quoted(key)} is a section: expected one of its settings", ", ".join(inside))
    if key == "extends":
        return Problem(where, "`extends` belongs into a preset file", "copy the preset: qdpo presets copy NAME FILE")
    return Problem(where, f"unknown key {quoted(key)}", fields.suggestion(key))


def _read(setting: Setting, entry: str | None, text: str) -> Any:
    if entry is not None:
        return text if setting.item is str else _scalar(text.strip(), setting.item)
    if setting.nullable and text.strip() in ("null", "~"):
        return None
    if text.strip() in setting.words:
        return text.strip()
    if setting.kind is str:
        return text
    if setting.kind in (list, dict) and text.lstrip().startswith(("[", "{")):
        return _typed(strict_yaml.compose_value(text), setting.item)
    if setting.kind is list:
        # `a` and `a,b` are lists of one and of two.
        return [_scalar(part.strip(), setting.item) for part in text.split(",")] if text.strip() else []
    return _scalar(text.strip(), setting.kind)


def _typed(node: yaml.Node, item: type | None) -> Any:
    """A flow list or mapping as plain data; deeper nesting stays, for the schema to refuse."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value if isinstance(key, yaml.ScalarNode) else "?" for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"duplicate key {quoted(key)}", "keep one of them")
        return {key: _typed(value, item) for key, (_, value) in zip(keys, node.value, strict=True)}
    if isinstance(node, yaml.SequenceNode):
        return [_typed(inner, item) for inner in node.value]
    # Quotes make text of anything.
    return node.value if node.style in ("'", '"') else _scalar(node.value, item)


def _scalar(text: str, kind: type | None) -> Any:
    """A scalar by YAML 1.2's core schema; text where the setting holds text."""
    if kind is str:
        return text
    if text in ("", "null", "Null", "NULL", "~"):
        return None
    if text.lower() in ("true", "false") and text in (text.lower(), text.title(), text.upper()):
        return text.lower() == "true"
    if re.fullmatch(r"[-+]?[0-9]{1,30}", text):
        return int(text)
    if re.fullmatch(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,4})?", text):
        return float(text)
    return text
