"""What the schema says about each setting, by dotted key: its type, what it accepts, and what it means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel

from qdpo.config.problems import nearest, quoted
from qdpo.config.schema import RunConfig

KINDS = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list, "object": dict}
NOUNS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}


@dataclass(frozen=True)
class Setting:
    """One field of the schema.

    Attributes:
        key: dotted key, such as `train.learning_rate`.
        kind: the type without None: str, int, float, bool, list, dict.
        item: the type of a list's items or a mapping's values; None for a scalar.
        nullable: whether null is a value.
        words: texts that are a value beside the type's: `auto`.
        choices: the allowed texts of a Literal (of the items, for a list).
        expected: what the setting accepts, for a message: "a number above 0 or null".
        meaning: the field's description.
    """

    key: str
    kind: type
    item: type | None
    nullable: bool
    words: tuple[str, ...]
    choices: tuple[str, ...]
    expected: str
    meaning: str


@cache
def settings() -> dict[str, Setting]:
    """Every setting, in the schema's order."""
    return {setting.key: setting for setting in _properties(RunConfig)}


@cache
def sections() -> frozenset[str]:
    """The names of the groups of settings: model, lora, data, ..."""
    return frozenset(key.split(".")[0] for key in settings() if "." in key)


def suggestion(key: str) -> str:
    """`did you mean ...?` for a key that does not exist, also when its section is missing or another's."""
    leaf = key.rpartition(".")[2]
    elsewhere = [known for known in settings() if known.rpartition(".")[2] == leaf]
    known = [*settings(), *sections()]
    close = elsewhere or nearest(key, known)
    if not close:
        leaves = {name.rpartition(".")[2]: name for name in settings()}
        close = [leaves[name] for name in nearest(leaf, leaves)]
    if close:
        return f"did you mean {' or '.join(quoted(name) for name in close)}?"
    return "`qdpo presets show quickstart` lists every setting"


def _properties(section: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    """The settings of a section and of the sections in it, from pydantic's JSON schema of them."""
    described = section.model_json_schema()["properties"]
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _properties(info.annotation, f"{name}.")
        else:
            yield _setting(prefix + name, described[name])


def _setting(key: str, described: dict[str, Any]) -> Setting:
    options = described.get("anyOf", [described])
    main = next(
        option for option in options if option["type"] != "null" and (len(options) == 1 or "const" not in option)
    )
    words = tuple(option["const"] for option in options if option is not main and "const" in option)
    nullable = any(option["type"] == "null" for option in options)
    inner = main.get("items") or main.get("additionalProperties") or {}
    kind, item = KINDS[main["type"]], KINDS.get(inner.get("type", ""))
    one = inner or main
    choices = tuple(one.get("enum", [one["const"]] if "const" in one else []))
    expected = " or ".join([_expected(main, kind, item, choices), *words, *["null"] * nullable])
    return Setting(key, kind, item, nullable, words, choices, expected, described.get("description", ""))


def _expected(main: dict[str, Any], kind: type, item: type | None, choices: tuple[str, ...]) -> str:
    items = "text" if item is str else "numbers"
    if kind is list:
        return f"a list from {', '.join(choices)}" if choices else f"a list of {items}"
    if kind is dict:
        return f"a mapping of names to {items}"
    if choices:
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    bounds = " and ".join(f"{word} {main[bound]}" for bound, word in BOUNDS.items() if bound in main)
    return f"{NOUNS[kind]} {bounds}".strip()
