"""The one reader of YAML, for preset files and `--set`: strict, and it knows the line of every value.

PyYAML parses. Numbers are those of YAML 1.2 (`5e-6` is one). Refused is what would be read as something else than was
meant: duplicate keys, anchors and aliases, tags, several documents, numbers such as `1:30` (90 in YAML 1.1), and
`yes`, `no`, `on`, `off` and dates without quotes, which are text to YAML 1.2 only.
"""

from __future__ import annotations

import math
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from qdpo.config.problems import Problem, config_error, quoted

MAX_BYTES = 1_000_000
MAX_DEPTH = 16
MAX_VALUES = 5_000
MAX_DIGITS = 100

FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that YAML does not allow; NUL is the one that is met, in files that are not text."""

DECIMAL = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?\Z")
TAG = "tag:yaml.org,2002:"
UNCLEAR = {"bool": "true or false", "timestamp": "a date"}

# libyaml where PyYAML was built with it: a file at the size limit is read in a fraction of a second.
_Fastest: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Loader(_Fastest):
    """PyYAML's safe loader, to which a number needs neither a dot nor a signed exponent."""


class Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which puts a text in quotes that `Loader` would take for a number."""


for side in (Loader, Dumper):
    side.add_implicit_resolver(f"{TAG}float", DECIMAL, list("-+.0123456789"))

Path_ = tuple[str | int, ...]
"""The keys and list indices that lead to a value."""


@dataclass(frozen=True)
class Place:
    """Where a value stands and how it was written.

    Attributes:
        line: line of the key (of the item, for one in a list), counted from 1.
        text: the scalar as written, without quotes; None for a list or mapping.
    """

    line: int
    text: str | None = None


@dataclass(frozen=True)
class Unclear:
    """A value that is text to YAML 1.2 and something else to YAML 1.1; no setting takes it.

    Attributes:
        text: as it was written.
        kind: what YAML 1.1 reads it as.
    """

    text: str
    kind: str


@dataclass(frozen=True)
class Document:
    """A YAML mapping and the place of every value in it.

    Attributes:
        source: how messages name the file.
        values: the data: dict, list, str, int, float, bool, None, `Unclear`.
        places: the place of every value, by its path.
    """

    source: str
    values: dict[str, Any]
    places: dict[Path_, Place] = field(default_factory=dict)

    def where(self, path: Path_) -> str:
        """`file:line` of a value, or of the nearest thing around it that has a line."""
        while path and path not in self.places:
            path = path[:-1]
        return f"{self.source}:{self.places[path].line}" if path else self.source


def load(path: Path, source: str | None = None) -> Document:
    """Read one YAML file whose top level is a mapping.

    Args:
        path: the file.
        source: how messages name it; the path as given when None.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8 YAML of at most 1 MB, or breaks a rule of this module.
    """
    source = source or str(path)
    return loads(read_text(path, source), source)


def loads(text: str, source: str) -> Document:
    """`load` for text that is already in memory."""
    reader = Reader(source)
    values = reader.read(text)
    if reader.problems:
        raise config_error(reader.problems)
    root = reader.places.get(())
    if root is None or root.text == "":
        raise config_error([Problem(source, "the file is empty: expected a preset", "see `qdpo presets copy`")])
    if not isinstance(values, dict):
        found = "a list" if root.text is None else quoted(root.text)
        raise config_error([Problem(f"{source}:{root.line}", f"expected `key: value` lines, found {found}")])
    return Document(source, values, reader.places)


def read_text(path: Path, source: str) -> str:
    """The text of a file that may be a preset; errors as in `load`."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            kind = "a directory" if path.is_dir() else "not a regular file"
            raise config_error([Problem(source, f"this is {kind}: expected a YAML file")])
        with open(path, "rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise config_error([Problem(source, "there is no such file")]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise config_error([Problem(source, f"the file cannot be read: {reason}")]) from None
    if len(raw) > MAX_BYTES:
        raise config_error([Problem(source, f"the file is larger than {MAX_BYTES:,} bytes: expected a preset")])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        what = f"byte 0x{raw[error.start]:02x} is not UTF-8"
        raise config_error([Problem(f"{source}:{line}", what, "save the file as UTF-8")]) from None


def dump(value: Any) -> str:
    """A value as YAML on one line, which reads back as the same; floats as `5.0e-06`, a number to YAML 1.1 too."""
    text = yaml.dump(
        [value], Dumper=Dumper, default_flow_style=True, allow_unicode=True, width=float("inf"), sort_keys=False
    )
    return text.strip()[1:-1]


class Reader:
    """Plain data from YAML text, the place of every value, and the mistakes found on the way.

    Args:
        source: how messages name the text.
        expected: what the text should be, for the message when it is no YAML.
        texts: every scalar is taken as text, as it is written.
    """

    def __init__(self, source: str, expected: str = "valid YAML", *, texts: bool = False) -> None:
        self.source, self.expected, self.texts = source, expected, texts
        self.places: dict[Path_, Place] = {}
        self.problems: list[Problem] = []
        self._constructor = yaml.constructor.SafeConstructor()

    def read(self, text: str) -> Any:
        """The value that a text holds; None when it holds none, or has a mistake."""
        if bad := FORBIDDEN.search(text):
            what = f"the character U+{ord(bad.group()):04X} is not allowed in YAML"
            return self._wrong(_line(text, bad), what, "is this a text file?")
        if tab := re.search(r"^ *\t", text, re.MULTILINE):
            what = "a tab in the indentation: expected spaces"
            return self._wrong(_line(text, tab), what, "replace the tab by two spaces per level")
        try:
            if not self._harmless(text):
                return None
            root = yaml.compose(text, Loader)
        except yaml.MarkedYAMLError as error:
            return self._not_yaml(error, text)
        except (yaml.YAMLError, ValueError) as error:
            return self._wrong(None, f"not {self.expected}: {quoted(str(error), 200)}")
        return None if root is None else self._value(root, (), root.start_mark.line + 1)

    def _harmless(self, text: str) -> bool:
        """Whether it is no bomb, found out before anything is built from it."""
        depth = values = documents = 0
        what = hint = None
        for event in yaml.parse(text, Loader):
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    what = "a second document starts here: expected one document per file"
            elif isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
                what = f"anchors and aliases ({quoted(sign + event.anchor)}) are not allowed"
                hint = "write the value out, or use `extends:`"
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            elif isinstance(event, yaml.NodeEvent):
                values += 1
                depth += isinstance(event, yaml.CollectionStartEvent)
                # `!` alone is what an application-specific marker looks like; no tag has a meaning in a preset.
                if tag := getattr(event, "tag", None):
                    what = f"tags ({quoted(tag.replace(TAG, '!!'))}) are not allowed in a preset"
                elif depth > MAX_DEPTH:
                    what = f"nested deeper than {MAX_DEPTH} levels: expected a preset"
                elif values > MAX_VALUES:
                    what = f"more than {MAX_VALUES:,} values: expected a preset"
            if what:
                self._wrong(event.start_mark.line + 1, what, hint)
                return False
        return True

    def _not_yaml(self, error: yaml.MarkedYAMLError, text: str) -> None:
        mark = error.problem_mark or error.context_mark
        what = f"not {self.expected}: {error.problem or error}"
        if error.context:
            what += f" ({error.context}" + (f" at line {error.context_mark.line + 1})" if error.context_mark else ")")
        if mark is None:
            return self._wrong(None, what)
        lines = text.splitlines()
        line = lines[mark.line] if mark.line < len(lines) else ""
        hint = f"the line is {quoted(line.strip())}" if line.strip() else None
        if "\t" in line:
            hint = "there is a tab in this line: use spaces"
        elif error.problem and error.problem.startswith("mapping values are not allowed"):
            hint = f"{hint}; text with a colon needs quotes"
        return self._wrong(mark.line + 1, what, hint)

    def _value(self, node: yaml.Node, path: Path_, line: int) -> Any:
        self.places[path] = Place(line, node.value if isinstance(node, yaml.ScalarNode) else None)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(n, (*path, i), n.start_mark.line + 1) for i, n in enumerate(node.value)]
        return node.value if self.texts else self._scalar(node, line)

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line, key = key_node.start_mark.line + 1, key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                self._wrong(line, "expected a name as key, found a list or mapping")
            elif key_node.tag != f"{TAG}str":
                kind = key_node.tag.rpartition(":")[2]
                self._wrong(line, f"expected a name as key, but YAML reads {quoted(key)} as {kind}", "quote the key")
            elif key in values:
                dotted, first = ".".join(map(str, (*path, key))), self.places[(*path, key)].line
                self._wrong(line, f"duplicate key {quoted(dotted)} (first on line {first})", "keep one of them")
            else:
                values[key] = self._value(value_node, (*path, key), line)
        return values

    def _scalar(self, node: yaml.ScalarNode, line: int) -> Any:
        text, kind = node.value, node.tag.removeprefix(TAG)
        if kind == "timestamp" or (kind == "bool" and text.lower() not in ("true", "false")):
            return Unclear(text, UNCLEAR[kind])
        if kind not in ("int", "float"):
            return {"null": None, "bool": text.lower() == "true"}.get(kind, text)
        if len(text) > MAX_DIGITS:
            return self._wrong(line, f"{quoted(text)}: a number of {len(text):,} characters", "put text in quotes")
        try:
            value = self._constructor.construct_object(node)
        except ValueError:
            value = math.nan
        # YAML 1.1 reads `0042` by eights, and knows numbers that are rarely meant: `1:30`, `0x10`, `1_000`, `.inf`.
        if DECIMAL.match(text) and (kind == "float" or value == int(text)):
            return value
        what, hint = f"{quoted(text)}: expected a decimal number or text", "put it in quotes if it is text"
        if math.isfinite(value):
            what = f"YAML reads {quoted(text)} as {quoted(value)}: expected a decimal number or text"
            hint = f"write {quoted(value)}, or {hint}"
        return self._wrong(line, what, hint)

    def _wrong(self, line: int | None, what: str, hint: str | None = None) -> None:
        self.problems.append(Problem(self.source if line is None else f"{self.source}:{line}", what, hint))


def _line(text: str, found: re.Match[str]) -> int:
    return text.count("\n", 0, found.start()) + 1
