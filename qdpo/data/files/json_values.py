"""JSON that is no line a row: a list, values one after another, or one object that is a whole table.

A list and values are read one at a time. A table (`{"data": [...]}`, columns, what pandas writes) is read whole, up to
`LARGEST_TABLE`.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from qdpo.data.files.defects import why_not_json
from qdpo.data.files.encodings import UTF8_MARK, not_utf8
from qdpo.errors import DataError
from qdpo.foreign import SHORT, shortened, shown

CHUNK = 1 << 20
LARGEST_ITEM = 64 << 20
"""Characters of one row among others."""
LARGEST_TABLE = 256 << 20
"""Characters of one object that is a whole table."""
WHITE = " \t\r\n"
MANY = 20
"""Lists of this many values, all as long, are columns, whatever is in them: a conversation has fewer messages."""
BEGUN = re.compile(r"|-|\.|e[+-]?|t|tr|tru|f|fa|fal|fals|n|nu|nul|u[0-9a-f]{0,4}", re.I)
"""What may stand between a fault and the end of a text that was cut off."""
AS_LINES = "write its rows as JSON Lines, one object a line (jq -c '.KEY[]' FILE > OUT)"

LISTS = ("data", "rows", "train", "examples", "items", "records", "samples", "instances", "pairs", "dataset")
"""Keys under which a table's rows are looked for where there is more than this key."""


class DuplicateKey(ValueError):
    """An object has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise DuplicateKey(f"the key {shown(next(key for key in keys if keys.count(key) > 1))} occurs twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def is_cut(error: json.JSONDecodeError) -> bool:
    """Whether a text that is not JSON may be the beginning of one that is."""
    if error.msg.startswith("Unterminated string"):
        return True
    end = error.doc.rstrip(WHITE) if len(error.doc) - error.pos < SHORT else error.doc
    return len(end) - error.pos < 6 and BEGUN.fullmatch(end, error.pos) is not None


class Scanner:
    """Takes JSON values one by one from a stream, holding no more than one value and one chunk.

    Args:
        stream: bytes, from the beginning of a file.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        self._buffer, self._at = "", 0
        self._lines = 0

    @property
    def line(self) -> int:
        """How many lines have ended before this place."""
        return self._lines + self._buffer.count("\n", 0, self._at)

    def next(self) -> str:
        """The next character that is not white space, empty at the end of the file."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in WHITE:
                self._at += 1
            if self._at < len(self._buffer) or not self._more():
                return self._buffer[self._at : self._at + 1]

    def goes_on(self) -> bool:
        """Whether the line here ends where a value cannot: in a brace or bracket that it opens."""
        return self._buffer[self._at :].split("\n", 1)[0].rstrip().endswith(("{", "["))

    def step(self) -> None:
        """Pass over one character."""
        self._at += 1

    def value(self, most: int) -> Any:
        """The value that begins here.

        Args:
            most: characters at the most.

        Raises:
            Unreadable: there is none.
        """
        while True:
            try:
                found, end = DECODER.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if not is_cut(error):
                    raise Unreadable(*self._told(error)) from error
                if len(self._buffer) - self._at > most:
                    raise Unreadable(f"one value is longer than {most >> 20} MiB", AS_LINES) from error
                if not self._more():
                    raise Unreadable("the file ends in the middle of a value: it was cut off") from error
            except DuplicateKey as error:
                raise Unreadable(str(error), "keep one of the two") from error
            except (ValueError, RecursionError) as error:
                raise Unreadable(f"there is a value that cannot be read: {shortened(str(error), SHORT)}") from error
            else:
                # a number at the end of the buffer may go on in the next chunk
                if end < len(self._buffer) or not self._more():
                    self._at = end
                    return found

    def _more(self) -> bool:
        chunk = self._text.read(max(CHUNK, len(self._buffer) - self._at))
        self._lines = self.line
        self._buffer, self._at = self._buffer[self._at :] + chunk, 0
        return bool(chunk)

    def _told(self, error: json.JSONDecodeError) -> tuple[str, str]:
        near = self._buffer[self._at : error.pos + SHORT]
        why, fix = why_not_json(near.strip(), error.msg, error.pos - self._at)
        start = max(error.pos - SHORT // 2, self._at)
        excerpt = shown(self._buffer[start : error.pos + SHORT // 2])
        line = self._lines + self._buffer.count("\n", 0, error.pos) + 1
        return f"there is what is not JSON{why or f' ({error.msg})'}, in line {line:,}: {excerpt}", fix


class Unreadable(ValueError):
    """What comes next in a file is no JSON value.

    Args:
        what: why, behind `after 3 rows`.
        fix: the way out.
    """

    def __init__(self, what: str, fix: str = "repair the file, or write it again") -> None:
        super().__init__(what)
        self.what, self.fix = what, fix


def items_of_list(stream: IO[bytes], name: str) -> Iterator[Any]:
    """The items of `[...]` one by one.

    Raises:
        DataError: the list is damaged; says after how many items.
    """
    scanner, count = Scanner(stream), 0
    try:
        scanner.next()
        scanner.step()
        while (found := scanner.next()) != "]":
            if not found:
                raise Unreadable("the file ends")
            yield scanner.value(LARGEST_ITEM)
            count += 1
            if (found := scanner.next()) == ",":
                scanner.step()
                if scanner.next() == "]":
                    raise Unreadable("there is a comma before `]`")
            elif found != "]":
                raise Unreadable(f"`,` or `]` was expected, not {shown(found)}" if found else "the file ends")
        scanner.step()
        if scanner.next():
            raise Unreadable("there is more after the closing `]`")
    except Unreadable as error:
        raise DataError(f"{name}: not a JSON list of rows: after {count:,} items {error.what}", error.fix) from error
    except UnicodeDecodeError as error:
        raise not_utf8(name, f"after {count:,} items", error) from error


def values_in_turn(stream: IO[bytes], name: str) -> Iterator[Any]:
    """JSON values that stand one after another, over several lines or several in one.

    Raises:
        DataError: one of them is damaged; says after how many.
    """
    scanner, count = Scanner(stream), 0
    try:
        while scanner.next():
            yield scanner.value(LARGEST_ITEM)
            count += 1
    except Unreadable as error:
        raise DataError(f"{name}: not JSON throughout: after {count:,} rows {error.what}", error.fix) from error
    except UnicodeDecodeError as error:
        raise not_utf8(name, f"after {count:,} rows", error) from error


@dataclass(frozen=True)
class Table:
    """Rows that one object holds.

    Attributes:
        how: in what way, for the report.
        rows: all of them.
    """

    how: str
    rows: list[Any]


def shape_of(start: bytes, stream: IO[bytes], name: str) -> tuple[str, str]:
    """`list`, `lines` (a value a line), `values` (one after another) or `table`; and of a table how it holds its rows.

    Args:
        start: the first bytes of the file.
        stream: the file, from its beginning.
        name: of the file.

    Raises:
        DataError: one object holds several tables, or more than can be read.
    """
    first = start.removeprefix(UTF8_MARK).lstrip()[:1]
    if first != b"{":
        return "list" if first == b"[" else "lines", ""
    scanner = Scanner(stream)
    try:
        scanner.next()
        begun = scanner.line
        value = scanner.value(LARGEST_TABLE)
        ended = scanner.line
        follows = scanner.next()
    except Unreadable as error:
        if error.fix is AS_LINES:
            raise DataError(f"{name} holds one JSON object: {error.what}", AS_LINES) from error
        if scanner.goes_on():
            raise DataError(f"{name}: not JSON: {error.what}", error.fix) from error
        return "lines", ""
    except UnicodeDecodeError:
        return "lines", ""
    if not follows and (table := table_of(value, name)):
        return "table", table.how
    a_line = begun == ended and (not follows or scanner.line > ended)
    return "values" if not a_line and follows in ("", "{") else "lines", ""


def read_table(stream: IO[bytes], name: str) -> Table:
    """The rows of a file whose shape is `table`."""
    scanner = Scanner(stream)
    scanner.next()
    table = table_of(scanner.value(LARGEST_TABLE), name)
    assert table is not None, "the shape of the file was looked at"
    return table


def table_of(value: Any, name: str) -> Table | None:
    """The rows of an object that is a whole table; None for one that is a single row.

    Args:
        value: the only value of a file.
        name: of the file.

    Raises:
        DataError: several tables, columns that do not fit together, or what a server says in place of data.
    """
    if not isinstance(value, dict) or not value:
        return None
    if set(value) <= {"error", "message", "status", "detail", "statusCode"} and len(str(value)) < 1000:
        raise DataError(
            f"{name} is a server's error message in place of the data: {shown(value)}",
            "check its address and that you may read it, and download it again",
        )
    if isinstance(value.get("columns"), list) and _all(value.get("data"), list):
        return Table('columns and data, as pandas writes with orient="split"', _by_names(value, name))
    if all(isinstance(part, dict) and part for part in value.values()):
        return _by_index(value)
    if len(value) > 1 and all(isinstance(part, list) for part in value.values()) and not _is_conversation(value):
        return _by_columns(value, name)
    return _under_a_key(value, name)


def _is_conversation(value: Mapping[str, list[Any]]) -> bool:
    """Whether lists are the messages of one row, and not a column of messages beside other columns."""
    if not any(map(_are_messages, value.values())):
        return False
    lengths = {len(part) for part in value.values()}
    beside_lists = any(part and _all(part, list) for part in value.values())
    return len(lengths) > 1 or not (beside_lists or max(lengths) >= MANY)


def _by_names(value: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    columns = [str(column) for column in value["columns"]]
    if wrong := [row for row in value["data"] if len(row) != len(columns)]:
        raise DataError(
            f"{name}: {len(wrong):,} of {len(value['data']):,} rows under `data` have not the {len(columns)} values "
            "that `columns` names",
            "write it again",
        )
    return [dict(zip(columns, row, strict=True)) for row in value["data"]]


def _by_index(value: Mapping[str, dict[str, Any]]) -> Table | None:
    """What pandas writes by default, `{"prompt": {"0": ...}}`, or with orient="index", `{"0": {"prompt": ...}}`."""
    if all(key.isdecimal() for key in value):
        return Table("rows by their number", list(value.values()))
    columns = list(value.values())
    numbers = list(columns[0])
    if all(key.isdecimal() for key in numbers) and all(list(column) == numbers for column in columns):
        rows = [{name: column[number] for name, column in value.items()} for number in numbers]
        return Table("columns of numbered values, as pandas writes", rows)
    return None


def _by_columns(value: Mapping[str, list[Any]], name: str) -> Table | None:
    """`{"prompt": [...], "chosen": [...]}`; lists of objects are rows under keys."""
    if all(_all(part, dict) for part in value.values()):
        return _under_a_key(value, name)
    if len({len(part) for part in value.values()}) > 1:
        if table := _under_a_key(value, name):
            return table
        lengths = ", ".join(f"{shown(key)} {len(part):,}" for key, part in list(value.items())[:10])
        raise DataError(f"{name} holds columns of different lengths: {lengths}", "write it again, or one object a row")
    rows = [dict(zip(value, parts, strict=True)) for parts in zip(*value.values(), strict=True)]
    return Table("columns, each a list of values", rows)


def _under_a_key(value: Mapping[str, Any], name: str) -> Table | None:
    lists = [key for key, part in value.items() if _all(part, dict) and not _are_messages(part)]
    found = [key for key in lists if key in LISTS or len(value) == 1]
    if not found:
        return None
    if len(found) > 1:
        counts = ", ".join(f"{shown(key)} ({len(value[key]):,})" for key in found)
        raise DataError(
            f"{name} holds several lists of rows: {counts}", f"write one to a file: jq '.{found[0]}' FILE > OUT.json"
        )
    rows = value[found[0]]
    # what the hub's viewer answers: each row with its number
    if rows and all(row.keys() >= {"row_idx", "row"} for row in rows):
        rows = [row["row"] for row in rows]
    others = [shown(key) for key in lists if key != found[0] and value[key]]
    unread = f", not those under {', '.join(others[:5])}" if others else ""
    return Table(f"the rows under the key {shown(found[0])}{unread}", rows)


def _all(part: Any, kind: type) -> bool:
    return isinstance(part, list) and all(isinstance(item, kind) for item in part)


def _are_messages(part: list[Any]) -> bool:
    return any(isinstance(item, dict) and item.keys() & {"role", "from"} for item in part)
