"""`--set section.key=value`: one setting, given on the command line.

Values are read as in a preset file (`qdpo.config.strict_yaml`). Where the setting is text, or has texts in it, they
are taken as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from qdpo.config import fields
from qdpo.config.fields import Setting
from qdpo.config.problems import Problem, quoted
from qdpo.config.strict_yaml import FORBIDDEN, Reader

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
    if FORBIDDEN.search(text):
        return Problem(where, "the value has a character that is not text")
    setting, entry = _find(key)
    if setting is None:
        return _unknown(where, key)
    reader = Reader(where, "a valid list or mapping", texts=setting.item is str)
    value = _read(setting, entry, text, reader)
    if reader.problems:
        return replace(reader.problems[0], where=where)
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


def _read(setting: Setting, entry: str | None, text: str, reader: Reader) -> Any:
    kind = setting.kind if entry is None else setting.item
    bare = text.strip()
    if entry is None and bare in (*setting.words, *["null", "~"] * setting.nullable):
        return bare if bare in setting.words else None
    if kind is str:
        return text
    if kind is list and not bare.startswith("["):
        # `a` and `a,b` are lists of one and of two.
        if setting.item is str:
            return [part.strip() for part in text.split(",")] if bare else []
        bare = f"[{bare}]"
    return reader.read(bare)
