"""pydantic's findings as messages of ours: file and line, what was expected, what was found, what the setting means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from qdpo.config import fields
from qdpo.config.fields import Setting
from qdpo.config.loss import OTHER_NAMES
from qdpo.config.problems import Problem, nearest, quoted
from qdpo.config.strict_yaml import DECIMAL, Document, Path_, Place, Unclear


@dataclass(frozen=True)
class Source:
    """Where a setting's value came from.

    Attributes:
        where: `FILE:LINE` or `--set`.
        document: the file it stands in; None for an override.
        path: its path in that file.
        text: an override's value as it was given.
    """

    where: str
    document: Document | None = None
    path: Path_ = ()
    text: str | None = None

    def place(self, inner: Path_) -> Place | None:
        """The place of the value, or of one item inside it."""
        return self.document.places.get((*self.path, *inner)) if self.document else None

    def at(self, inner: Path_) -> str:
        """`FILE:LINE` of the value, or of one item inside it."""
        return self.document.where((*self.path, *inner)) if self.document else self.where


def explain(error: ValidationError, sources: Mapping[str, Source], file: str, hide_missing: bool) -> list[Problem]:
    """One problem per finding.

    Args:
        error: what pydantic found in the merged values.
        sources: dotted key -> where its value came from.
        file: how messages name the preset, for what has no line.
        hide_missing: leave out settings that are missing (when a misspelt key may be the reason).
    """
    problems = []
    seen = set()
    for finding in error.errors(include_url=False):
        key = _split(finding["loc"])[0] if finding["loc"] else ""
        # of a number or a word, pydantic says for each in turn what is wrong with it
        if (setting := fields.settings().get(key)) is not None and setting.words:
            if key in seen:
                continue
            finding["loc"] = tuple(key.split("."))
        seen.add(key)
        if finding["type"] == "missing":
            if not hide_missing:
                problems += _missing(finding, file)
        elif finding["type"] == "value_error":
            problems.append(_cross_field(finding, sources, file))
        else:
            problems.append(_wrong_value(finding, sources, file))
    return problems


def _missing(finding: ErrorDetails, file: str) -> list[Problem]:
    key = ".".join(map(str, finding["loc"]))
    needed = [key] if key in fields.settings() else [f"{key}.name"]
    settings = fields.settings()
    return [
        Problem(file, f"{name} is missing: expected {settings[name].expected} ({settings[name].meaning})")
        for name in needed
    ]


def _cross_field(finding: ErrorDetails, sources: Mapping[str, Source], file: str) -> Problem:
    """A validator's own sentence, with the lines of the settings that it names."""
    message = str(finding["ctx"]["error"])
    prefix = ".".join(map(str, finding["loc"]))
    words = set(re.findall(r"[\w.]*\w", message))
    words |= {f"{prefix}.{word}" for word in words if prefix}
    named = [source.where for key, source in sources.items() if key in words]
    return Problem(", ".join(dict.fromkeys(named)) or file, f"{prefix}: {message}" if prefix else message)


def _wrong_value(finding: ErrorDetails, sources: Mapping[str, Source], file: str) -> Problem:
    key, inner = _split(finding["loc"])
    setting = fields.settings().get(key)
    source = sources.get(key)
    if setting is None or source is None:
        return Problem(file, f"{'.'.join(map(str, finding['loc']))}: {finding['msg']}")
    where = source.at(inner)
    name = key + "".join(f"[{i}]" if isinstance(i, int) else f".{i}" for i in inner if i != "[key]")
    if source.document is None:
        where = f"{where} {quoted(f'{key}={source.text}', 80)}"
    expected = _item_expected(setting) if inner else setting.expected
    found, hint = _found(finding["input"], source.place(inner), setting, whole=not inner)
    if finding["type"] == "string_pattern_mismatch":
        expected = "lower-case letters, digits, `.`, `_`, `-`, at most 64, beginning with a letter or digit"
    elif finding["type"] in ("too_short", "string_too_short"):
        expected, found = expected.replace("a list", "a list with at least one item"), "nothing"
    if hint is None and setting.choices and isinstance(finding["input"], str):
        close = nearest(finding["input"], setting.choices)
        hint = f"did you mean {quoted(close[0])}?" if close else None
        if key == "loss.loss_type":
            hint = OTHER_NAMES.get(finding["input"].lower(), hint)
    return Problem(where, f"{name}: expected {expected}, found {found} ({setting.meaning})", hint)


def _split(loc: tuple[int | str, ...]) -> tuple[str, Path_]:
    """A dotted key and the path inside its value."""
    size = 2 if loc[0] in fields.sections() else 1
    return ".".join(map(str, loc[:size])), loc[size:]


def _item_expected(setting: Setting) -> str:
    if setting.choices:
        return f"one of {', '.join(setting.choices)}"
    return "text" if setting.item is str else "a number"


def _found(value: Any, place: Place | None, setting: Setting, whole: bool) -> tuple[str, str | None]:
    """What was written, and the way out when YAML read it as something else than was meant."""
    text = value.text if isinstance(value, Unclear) else place.text if place else None
    wants_text = str in (setting.kind, setting.item)
    wants_number = bool({int, float} & {setting.kind, setting.item})
    if isinstance(value, dict):
        return "a mapping", None
    if isinstance(value, list):
        return "a list", None
    if value is None:
        return "nothing (null)", None
    if isinstance(value, str):
        if wants_number and DECIMAL.match(value):
            return f"{quoted(value)} in quotes, which is text", f"write {value} without quotes"
        hint = None
        if whole and setting.kind is list and value.isidentifier() and place:
            hint = f"write [{value}]"
        elif setting.kind is bool and value in ("true", "false"):
            hint = f"write {value} without quotes"
        return f"the text {quoted(value)}", hint
    if text is not None and wants_text:
        kind = value.kind if isinstance(value, Unclear) else "true or false" if isinstance(value, bool) else "a number"
        return f"{quoted(text)}, which YAML reads as {kind}", f'write "{text}" in quotes'
    whole_number = setting.kind is int and isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    hint = f"write {value:.0f}" if whole_number else None
    if setting.kind is bool and isinstance(value, Unclear) and value.kind != "a date":
        hint = "write true or false"
    return quoted(text if text is not None else value), hint
