"""What the schema says about each setting, by dotted key: its type, what it accepts, and what it means."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from qdpo.config.problems import nearest, quoted
from qdpo.config.schema import RunConfig


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
    return {setting.key: setting for setting in _walk(RunConfig, "")}


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


def _walk(section: type[BaseModel], prefix: str) -> Iterator[Setting]:
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _walk(info.annotation, f"{name}.")
        else:
            yield _setting(prefix + name, info)


def _setting(key: str, info: FieldInfo) -> Setting:
    annotation, limits, nullable, words = _unwrap(info.annotation)
    limits = [*info.metadata, *limits]
    kind, item, choices = _kind(annotation)
    expected = " or ".join([_expected(kind, item, choices, limits), *words, *["null"] * nullable])
    return Setting(key, kind, item, nullable, words, choices, expected, info.description or "")


def _unwrap(annotation: Any) -> tuple[Any, list[Any], bool, tuple[str, ...]]:
    """The bare type, the constraints written around it, whether None is allowed, and which words are."""
    limits: list[Any] = []
    nullable = False
    words: tuple[str, ...] = ()
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *extra = get_args(annotation)
            for one in extra:
                limits += one.metadata if isinstance(one, FieldInfo) else [one]
        elif get_origin(annotation) in (Union, types.UnionType):
            parts = get_args(annotation)
            nullable |= type(None) in parts
            literals = [part for part in parts if get_origin(part) is Literal]
            others = [part for part in parts if part is not type(None) and part not in literals]
            if others:
                words = tuple(word for part in literals for word in get_args(part))
            (annotation,) = others or literals
        else:
            return annotation, limits, nullable, words


def _kind(annotation: Any) -> tuple[type, type | None, tuple[str, ...]]:
    origin = get_origin(annotation)
    if origin is Literal:
        return str, None, get_args(annotation)
    if origin is list:
        item, _, choices = _kind(_unwrap(get_args(annotation)[0])[0])
        return list, item, choices
    if origin is dict:
        return dict, _kind(get_args(annotation)[1])[0], ()
    return annotation, None, ()


def _expected(kind: type, item: type | None, choices: tuple[str, ...], limits: list[Any]) -> str:
    nouns = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    if kind is list:
        inner = f"from {', '.join(choices)}" if choices else f"of {'text' if item is str else 'numbers'}"
        return f"a list {inner}"
    if kind is dict:
        return f"a mapping of names to {'text' if item is str else 'numbers'}"
    if choices:
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    bounds = []
    for limit in limits:
        for sign, words in (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most")):
            if isinstance(limit, annotated_types.GroupedMetadata | annotated_types.BaseMetadata) and hasattr(
                limit, sign
            ):
                bounds.append(f"{words} {getattr(limit, sign)}")
    return " ".join([nouns.get(kind, kind.__name__), " and ".join(bounds)]).strip()
