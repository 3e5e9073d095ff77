"""What a file is: by its first bytes where they tell, else by its extension; what is no data is refused by name."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from qdpo.data.files.defects import refuse_bytes, refuse_text
from qdpo.data.files.json_values import shape_of
from qdpo.data.files.packed import Packing, packing_of, start_of, unpacked
from qdpo.errors import DataError, InputMissingError
from qdpo.foreign import shown

EXTENSIONS = frozenset({".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather"})
KIND_OF = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
SHOWN = {"json": "JSON", "csv": "CSV", "tsv": "TSV", "parquet": "Parquet", "arrow": "Arrow"}
HEAD = 1 << 16
"""Bytes that are looked at."""
ARROW_STREAM = b"\xff\xff\xff\xff"
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
JSON = re.compile(r'\{\s*["}]|\[\s*[\[{\]]')
"""How JSON begins, and nothing else does."""
COLUMN = re.compile(r"[\w.-]{1,64}")
"""What a column is called in a file whose name does not say that it is CSV."""
SEPARATOR = re.compile(r"sep=(.)\r?\n?")
"""The line that Excel begins a CSV file with."""


@dataclass(frozen=True)
class DataFile:
    """A data file, looked at.

    Attributes:
        path: where it is.
        name: what messages call it.
        kind: `json`, `csv`, `tsv`, `parquet` or `arrow`.
        shape: of JSON, see `qdpo.data.files.json_values.shape_of`; empty for other kinds.
        delimiter: between the fields of CSV; empty for other kinds.
        read_as: what the name does not say about how it is read; empty where that is all.
    """

    path: Path
    name: str
    kind: str
    shape: str = ""
    delimiter: str = ""
    read_as: str = ""

    @property
    def has_lines(self) -> bool:
        """Whether rows are numbered by their lines."""
        return self.kind in ("csv", "tsv") or self.shape == "lines"


def is_named_data(path: Path) -> bool:
    """Whether one of a file's extensions is that of data."""
    return any(suffix.lower() in EXTENSIONS for suffix in path.suffixes)


def look(path: Path, name: str = "") -> DataFile:
    """What a file is.

    Args:
        path: a file that is there.
        name: what messages call it; its path where there is none.

    Raises:
        InputMissingError: it may not be read.
        DataError: it is of no known kind, or no data; says what it is.
    """
    name = name or str(path)
    start = start_of(path, name, HEAD)
    packing = packing_of(start)
    if packing:
        with unpacked(path, name) as stream:
            start = stream.read(HEAD)
        if not start:
            raise DataError(f"{name} is empty when it is unpacked", "pack it again")
    refuse_bytes(name, start, b"" if packing else _end_of(path))
    suffix = next((e.lower() for e in reversed(Path(name).suffixes) if e.lower() in EXTENSIONS), "")
    if (found := _columnar(name, start, suffix)) is not None:
        if packing:
            raise DataError(
                f"{name} is {SHOWN[found]} inside of {packing.name}", f"unpack it first: {packing.unpack} FILE"
            )
        return DataFile(path, name, found, read_as=_unsaid(found, suffix, packing))
    kind = _text_kind(name, start, suffix)
    if kind == "json":
        with unpacked(path, name) as stream:
            shape, how = shape_of(start, stream, name)
        return DataFile(path, name, kind, shape, read_as=_joined(_unsaid(kind, suffix, packing), how))
    text = start.decode("utf-8-sig", "replace")
    expected = "\t" if kind == "tsv" else ","
    delimiter = _delimiter(text, expected)
    between = "" if delimiter == expected else f"fields between {DELIMITERS.get(delimiter, shown(delimiter))}"
    return DataFile(path, name, kind, "", delimiter, _joined(_unsaid(kind, suffix, packing), between))


def _joined(*told: str) -> str:
    return ", ".join(filter(None, told))


def _end_of(path: Path) -> bytes:
    with path.open("rb") as stream:
        stream.seek(-min(HEAD, path.stat().st_size), 2)
        return stream.read(HEAD)


def _unsaid(kind: str, suffix: str, packing: Packing | None) -> str:
    """What the name of a file does not say."""
    is_said = KIND_OF.get(suffix) == kind
    return "" if is_said else " in ".join(filter(None, [SHOWN[kind], packing.name if packing else ""]))


def _columnar(name: str, start: bytes, suffix: str) -> str | None:
    """`parquet`, `arrow`, or None where it must be text."""
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith((b"ARROW1", ARROW_STREAM)):
        return "arrow"
    if suffix in (".parquet", ".arrow", ".feather"):
        refuse_text(name, start, whole=len(start) < HEAD, json=False)
        if suffix == ".parquet":
            raise DataError(f"{name} is not a Parquet file: it does not begin with PAR1", "was the download complete?")
        return "arrow"
    return None


def _text_kind(name: str, start: bytes, suffix: str) -> str:
    kind = KIND_OF.get(suffix)
    text = start.decode("utf-8-sig", "replace").lstrip()
    refuse_text(name, start, whole=len(start) < HEAD, json=kind in (None, "json"))
    if JSON.match(text):
        return "json"
    is_table = kind in (None, "json") and _is_csv(text)
    if kind == "json" and is_table:
        raise DataError(f"{name} holds CSV, not JSON", f"let its name end in {'.tsv' if is_table == 'tsv' else '.csv'}")
    if kind:
        return kind
    if is_table:
        return is_table
    known = f"let its name end in what it is: {', '.join(sorted(EXTENSIONS))}, also as .gz, .bz2, .xz, .zst"
    extension = Path(name).suffix
    if extension.lower() in ("", ".txt"):
        raise DataError(f"{name} is neither JSON nor CSV with a line of column names", known)
    raise DataError(f"{name} has the unknown extension {extension!r}, and is no JSON", known)


def _is_csv(text: str) -> str:
    """`csv` or `tsv` where a text of unknown kind is a table for sure, empty where it may be anything."""
    delimiter = _delimiter(text, ",")
    lines = text.splitlines()[:2]
    if len(lines) < 2:
        return ""
    try:
        names, fields = csv.reader(lines, delimiter=delimiter)
    except (csv.Error, ValueError):
        return ""
    is_table = len(names) > 1 and all(map(COLUMN.fullmatch, names)) and len(fields) > 1
    return ("tsv" if delimiter == "\t" else "csv") if is_table else ""


def _delimiter(text: str, expected: str) -> str:
    """What stands between the fields of CSV: what gives its first line the most names, the expected one of equals."""
    if said := SEPARATOR.match(text):
        return said[1]

    def names(delimiter: str) -> int:
        # the record may go on over several lines in quotes, and may be cut off by the end of what was read
        return len(next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), []))

    counts = {delimiter: names(delimiter) for delimiter in (expected, *DELIMITERS)}
    return max(counts, key=lambda delimiter: counts[delimiter])


def check(path: Path, name: str = "") -> DataFile:
    """Refuse what is no readable data file, before anything else is done.

    Args:
        path: anything.
        name: what messages call it; its path where there is none.

    Raises:
        InputMissingError: not there, or not allowed.
        DataError: of no known kind, or no data; says what it is.
    """
    name = name or str(path)
    if path.is_symlink() and not path.exists():
        raise InputMissingError(f"{name} is a symbolic link that leads nowhere or in a circle", "give the file itself")
    if not path.exists():
        raise InputMissingError(f"there is no file {name}", "check the path, and data.name")
    if not path.is_file():
        raise DataError(f"{name} is not a file", f"give one file: {', '.join(sorted(EXTENSIONS))}")
    if path.stat().st_size == 0:
        raise DataError(f"{name} is empty", "the file has 0 bytes: write it again")
    return look(path, name)
