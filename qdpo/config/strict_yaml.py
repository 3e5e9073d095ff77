"""YAML files read strictly, with the line of every key, so that an error can say where it is.

PyYAML parses; this module refuses what PyYAML would read as something else than was meant: duplicate keys, anchors and
aliases, tags, several documents, numbers such as `1:30` (90 in YAML 1.1). The result is plain data plus a `Place` per
value, which keeps the text as it was written.
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
from qdpo.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 16
MAX_VALUES = 5_000
MAX_DIGITS = 100

# libyaml where PyYAML was built with it: a file at the size limit is read in a fraction of a second.
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that YAML does not allow; NUL is the one that is met, in files that are not text."""

DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][-+]?[0-9]+)?|[-+]?\.[0-9]+([eE][-+]?[0-9]+)?")
NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
STRING_TAG = "tag:yaml.org,2002:str"

Path_ = tuple[str | int, ...]
"""The keys and list indices that lead to a value."""


@dataclass(frozen=True)
class Place:
    """Where a value stands and how it was written.

    Attributes:
        line: line of the key (of the item, for one in a list), counted from 1.
        text: the scalar as written, without quotes; None for a list or mapping.
        plain: True for a scalar without quotes.
    """

    line: int
    text: str | None = None
    plain: bool = False


@dataclass(frozen=True)
class Document:
    """A YAML mapping and the place of every value in it.

    Attributes:
        source: how messages name the file.
        values: the data: dict, list, str, int, float, bool, None (and dates, which no setting accepts).
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
    if bad := FORBIDDEN.search(text):
        what = f"the character U+{ord(bad.group()):04X} is not allowed in YAML"
        raise config_error([Problem(_at(source, text, bad.start()), what, "is this a text file?")])
    if tab := re.search(r"^ *\t", text, re.MULTILINE):
        hint = "replace the tab by two spaces per level"
        raise config_error([Problem(_at(source, text, tab.start()), "a tab in the indentation: expected spaces", hint)])
    try:
        _check_events(text, source)
        root = yaml.compose(text, Loader)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text, source) from None
    except (yaml.YAMLError, ValueError) as error:
        raise config_error([Problem(source, f"not valid YAML: {quoted(str(error), 200)}")]) from None
    if root is None or (isinstance(root, yaml.ScalarNode) and not root.value):
        raise config_error([Problem(source, "the file is empty: expected a preset", "see `qdpo presets copy`")])
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else quoted(root.value)
        line = root.start_mark.line + 1
        raise config_error([Problem(f"{source}:{line}", f"expected `key: value` lines, found {kind}")])
    builder = _Builder(source)
    values = builder.mapping(root, ())
    if builder.problems:
        raise config_error(builder.problems)
    return Document(source, values, builder.places)


def compose_value(text: str) -> yaml.Node:
    """The node of a flow list or mapping given on the command line, under the same rules as a file.

    Raises:
        ConfigError: it is not YAML, or breaks a rule of this module.
    """
    try:
        _check_events(text, "value")
        node = yaml.compose(text, Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"not a valid list or mapping: {getattr(error, 'problem', None) or error}") from None
    if node is None:
        raise ConfigError("the value is empty")
    return node


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


def _at(source: str, text: str, position: int) -> str:
    return f"{source}:{text.count(chr(10), 0, position) + 1}"


def _check_events(text: str, source: str) -> None:
    """Refuse what could be a bomb before anything is built from it."""
    depth = values = documents = 0
    for event in yaml.parse(text, Loader):
        where = f"{source}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise config_error([Problem(where, "a second document starts here: expected one document per file")])
        elif isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
            what = f"anchors and aliases ({quoted(sign + event.anchor)}) are not allowed"
            raise config_error([Problem(where, what, "write the value out, or use `extends:`")])
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.NodeEvent):
            values += 1
            # `!` alone is what an application-specific marker looks like; no tag has a meaning in a preset.
            if getattr(event, "tag", None):
                raise config_error(
                    [Problem(where, f"tags ({quoted(_short_tag(event.tag))}) are not allowed in a preset")]
                )
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            if depth > MAX_DEPTH:
                raise config_error([Problem(where, f"nested deeper than {MAX_DEPTH} levels: expected a preset")])
            if values > MAX_VALUES:
                raise config_error([Problem(where, f"more than {MAX_VALUES:,} values: expected a preset")])


def _short_tag(tag: str) -> str:
    """A tag as it is written: `!!str` for `tag:yaml.org,2002:str`."""
    return tag.replace("tag:yaml.org,2002:", "!!")


def _syntax_error(error: yaml.MarkedYAMLError, text: str, source: str) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    what = "not valid YAML: " + (error.problem or str(error))
    if error.context:
        what += f" ({error.context}" + (f" at line {error.context_mark.line + 1})" if error.context_mark else ")")
    if mark is None:
        return config_error([Problem(source, what)])
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    hint = f"the line is {quoted(line.strip())}" if line.strip() else None
    if "\t" in line:
        hint = "there is a tab in this line: use spaces"
    elif error.problem and error.problem.startswith("mapping values are not allowed"):
        hint = f"{hint}; text with a colon needs quotes"
    return config_error([Problem(f"{source}:{mark.line + 1}", what, hint)])


class _Builder:
    """Plain data from nodes, with places and the mistakes found on the way."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.places: dict[Path_, Place] = {}
        self.problems: list[Problem] = []
        self._constructor = yaml.constructor.SafeConstructor()

    def mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self._key(key_node, line)
            if key is None:
                continue
            if key in values:
                first = self.places[(*path, key)].line
                dotted = ".".join(map(str, (*path, key)))
                self._wrong(line, f"duplicate key {quoted(dotted)} (first on line {first})", "keep one of them")
                continue
            values[key] = self._value(value_node, (*path, key), line)
        return values

    def _key(self, node: yaml.Node, line: int) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._wrong(line, "expected a name as key, found a list or mapping")
            return None
        if node.tag != STRING_TAG:
            kind = node.tag.rpartition(":")[2]
            self._wrong(line, f"expected a name as key, but YAML reads {quoted(node.value)} as {kind}", "quote the key")
            return None
        return str(node.value)

    def _value(self, node: yaml.Node, path: Path_, line: int) -> Any:
        if isinstance(node, yaml.MappingNode):
            self.places[path] = Place(line)
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            self.places[path] = Place(line)
            return [self._value(n, (*path, i), n.start_mark.line + 1) for i, n in enumerate(node.value)]
        plain = not node.style
        self.places[path] = Place(line, node.value, plain)
        if node.tag in NUMBER_TAGS and len(node.value) > MAX_DIGITS:
            self._wrong(line, f"{quoted(node.value)}: a number of {len(node.value):,} characters", "put text in quotes")
            return None
        if node.tag in NUMBER_TAGS and not DECIMAL.fullmatch(node.value):
            return self._odd_number(node, line)
        try:
            return self._constructor.construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            self._wrong(line, f"{quoted(node.value)} cannot be read: {quoted(str(error))}", "put it in quotes")
            return None

    def _odd_number(self, node: yaml.ScalarNode, line: int) -> None:
        """`1:30`, `0x10`, `010`, `1_000`, `.inf`: numbers to YAML 1.1, but rarely the ones that were meant."""
        try:
            value = self._constructor.construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError):
            value = math.nan
        if math.isfinite(value):
            what = f"YAML reads {quoted(node.value)} as {quoted(value)}: expected a decimal number or text"
            hint = f"write {quoted(value)}, or put it in quotes if it is text"
        else:
            what, hint = f"{quoted(node.value)}: expected a decimal number or text", "put it in quotes if it is text"
        self._wrong(line, what, hint)

    def _wrong(self, line: int, what: str, hint: str | None = None) -> None:
        self.problems.append(Problem(f"{self.source}:{line}", what, hint))
