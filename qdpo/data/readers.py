"""Rows from a file: JSON Lines, a JSON list, CSV, Parquet or Arrow; compressed or not; one at a time.

The kind is taken from the file's first bytes where they tell, else from its extension. A record that is damaged on its
own (a line that is not JSON) is yielded as `Broken`, so that the caller can count it; a damaged file raises.

Records are numbered as people find them, from 1: by the line that they begin on where the file has lines, else by their
place among the rows.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qdpo.errors import DataError, InputMissingError, first_line
from qdpo.foreign import SHORT, shortened, shown
from qdpo.model.source import is_local

EXTENSIONS = frozenset({".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather"})
COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
REFUSED = {b"PK\x03\x04": "a ZIP archive", b"\x28\xb5\x2f\xfd": "compressed with zstd", b"\x80\x04": "a Python pickle"}
UTF8_MARK = b"\xef\xbb\xbf"
UTF16 = (b"\xff\xfe", b"\xfe\xff")

LARGEST_FIELD = 1 << 30
"""Characters of one CSV field; the csv module's own limit is 131,072."""
CHUNK = 1 << 20
LARGEST_ITEM = 64 << 20
"""Characters of one item of a JSON list; what is longer without an end is damaged."""
ROWS_PER_BATCH = 256
LOOKED_AT = 4096
"""Bytes of a damaged line that are looked at for showing its beginning."""

csv.field_size_limit(LARGEST_FIELD)


@dataclass(frozen=True)
class Broken:
    """A record that cannot be read, while those after it can.

    Attributes:
        reason: what is wrong with it, the same for all records with this damage.
        fix: what to do about it.
        example: what exactly, and the beginning of the record.
    """

    reason: str
    fix: str
    example: str


def is_file_name(name: str) -> bool:
    """Whether a dataset name means something on this machine, also when it is not there."""
    return is_local(name) or os.path.lexists(name) or bool(set(Path(name).suffixes) & EXTENSIONS)


def check(path: Path) -> None:
    """Refuse what is no readable data file, before anything else is done.

    Raises:
        InputMissingError: not there, or not allowed.
        DataError: of no known kind.
    """
    if path.is_symlink() and not path.exists():
        raise InputMissingError(f"{path} is a symbolic link that leads nowhere or in a circle", "give the file itself")
    if not path.exists():
        raise InputMissingError(f"there is no file {path}", "check the path, and data.name")
    if not path.is_file():
        raise DataError(f"{path} is not a file", f"give one file: {', '.join(sorted(EXTENSIONS))}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty", "the file has 0 bytes: write it again")
    kind_of(path)


def read(path: Path) -> Iterator[Any]:
    """The rows of a file, see `numbered`."""
    return (row for _, row in numbered(path))


def numbered(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file that `check` accepted, each with its number from 1: of its line where `has_lines`.

    Raises:
        DataError: the file is damaged; says where.
    """
    kind = kind_of(path)
    if kind == "json":
        yield from _json(path)
    elif kind in ("csv", "tsv"):
        yield from _csv(path)
    else:
        yield from enumerate((_parquet if kind == "parquet" else _arrow)(path), 1)


def has_lines(path: Path) -> bool:
    """Whether a file's rows are numbered by their lines."""
    kind = kind_of(path)
    if kind != "json":
        return kind in ("csv", "tsv")
    with unpacked(path) as stream:
        return not _is_list(stream)


def kind_of(path: Path) -> str:
    """`json` (lines or a list), `csv`, `tsv`, `parquet` or `arrow`.

    Raises:
        InputMissingError: the file may not be read.
        DataError: it is of no known kind.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(6)
    except OSError as error:
        raise InputMissingError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    for magic, what in REFUSED.items():
        if head.startswith(magic):
            raise DataError(f"{path} is {what}", "unpack it, and give a JSON, CSV, Parquet or Arrow file")
    if head.startswith(UTF16):
        raise DataError(f"{path} is not UTF-8 but UTF-16", "convert it: iconv -f UTF-16 -t UTF-8 IN > OUT")
    if head.startswith(b"PAR1"):
        return "parquet"
    extension = next((e for e in reversed(path.suffixes) if e.lower() in EXTENSIONS), "").lower()
    if head.startswith(b"ARROW1") or extension in (".arrow", ".feather"):
        return "arrow"
    if extension == ".parquet":
        raise DataError(f"{path} is not a Parquet file: it does not begin with PAR1", "was the download complete?")
    if extension in (".csv", ".tsv"):
        return extension[1:]
    if extension in (".jsonl", ".ndjson", ".json"):
        return "json"
    raise DataError(
        f"{path} has the unknown extension {path.suffix!r}", f"known are {', '.join(sorted(EXTENSIONS))}, also as .gz"
    )


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked.

    Raises:
        DataError: the compressed stream is cut off or damaged.
    """
    with path.open("rb") as stream:
        head = stream.read(6)
    opener: Any = next((opener for magic, opener in COMPRESSED.items() if head.startswith(magic)), None)
    try:
        with opener(path, "rb") if opener else path.open("rb") as stream:
            yield stream
    except EOFError as error:
        raise DataError(f"{path} ends in the middle of its compressed data", "copy or download it again") from error
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} is damaged: {error}", "copy or download it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


class _DuplicateKey(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _DuplicateKey(f"the key {shown(next(key for key in keys if keys.count(key) > 1))} occurs twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    """One object a line, or one list of objects, whatever the extension says."""
    with unpacked(path) as stream:
        if _is_list(stream):
            yield from enumerate(_json_list(path, stream), 1)
        else:
            yield from _json_lines(path, stream)


def _is_list(stream: IO[bytes]) -> bool:
    """Whether a JSON file begins with `[`; it is read from its beginning afterwards."""
    start = stream.read(CHUNK).removeprefix(UTF8_MARK).lstrip()
    stream.seek(0)
    return start.startswith(b"[")


def _json_lines(path: Path, stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            # a byte order mark at the start of a file is not part of its text
            yield number, _DECODER.decode(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield number, _broken("is not UTF-8", f"from byte {error.start}", line, "write the file as UTF-8")
        except _DuplicateKey as error:
            yield number, _broken("has a key twice", str(error), line, "keep one of the two")
        except (ValueError, RecursionError) as error:
            if number == 1 and path.suffix == ".json" and line.strip() == b"{":
                raise DataError(
                    f"{path} holds one object, expected a list of rows", "one object a line, or a list `[{...}, ...]`"
                ) from error
            yield number, _broken("is not JSON", first_line(error), line, "mend it: one whole JSON object a line")


def _broken(what: str, why: str, line: bytes, fix: str) -> Broken:
    return Broken(
        f"the line {what}", fix, f"{why}: {shortened(line[:LOOKED_AT].decode('utf-8', 'replace').strip(), SHORT)}"
    )


def _json_list(path: Path, stream: IO[bytes]) -> Iterator[Any]:
    """The items of `[...]` one by one, holding no more than one item and one chunk in memory."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig")
    buffer, position, count = "", 0, 0

    def more() -> bool:
        nonlocal buffer, position
        chunk = text.read(max(CHUNK, len(buffer) - position))
        buffer, position = buffer[position:] + chunk, 0
        return bool(chunk)

    def skip() -> str:
        """The next character that is not white space, empty at the end of the file."""
        nonlocal position
        while True:
            while position < len(buffer) and buffer[position] in " \t\r\n":
                position += 1
            if position < len(buffer) or not more():
                return buffer[position : position + 1]

    def damaged(what: str) -> DataError:
        return DataError(f"{path}: not a JSON list of rows: after {count:,} items {what}", "repair or write it again")

    try:
        skip()
        position += 1
        while (found := skip()) != "]":
            if not found:
                raise damaged("the file ends")
            while True:
                try:
                    item, end = _DECODER.raw_decode(buffer, position)
                    # a number at the end of the buffer may go on in the next chunk
                    if end < len(buffer) or not more():
                        break
                except _DuplicateKey as error:
                    raise damaged(str(error)) from error
                except (ValueError, RecursionError) as error:
                    if len(buffer) - position > LARGEST_ITEM or not more():
                        raise damaged(str(error)) from error
            position = end
            yield item
            count += 1
            if (found := skip()) == ",":
                position += 1
                if skip() == "]":
                    raise damaged("there is a comma before `]`")
            elif found != "]":
                raise damaged(f"`,` or `]` was expected, not {found!r}" if found else "the file ends")
        position += 1
        if skip():
            raise damaged("there is more after the closing `]`")
    except UnicodeDecodeError as error:
        raise damaged("there is text that is not UTF-8") from error


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    with unpacked(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            rows = csv.reader(text, delimiter=delimiter, strict=True)
            names = next(rows, [])
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise DataError(
                    f"{path}: the column {shown(twice)} occurs twice", "rename one of them in its first line"
                )
            number = rows.line_num + 1
            for fields in rows:
                if len(fields) > len(names):
                    yield (
                        number,
                        Broken("more fields than columns", "put a field with a comma in quotes", shown(fields)),
                    )
                elif fields:
                    yield number, dict(itertools.zip_longest(names, fields))
                number = rows.line_num + 1  # a quoted field may go on over several lines
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not CSV in UTF-8: {error}", "repair or write it again") from error


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a readable Parquet file: {error}", "copy or download it again: it may be cut off"
        ) from error


def _arrow(path: Path) -> Iterator[Any]:
    """Arrow in its file form (Feather) or its stream form (what `datasets` saves)."""
    import pyarrow as pa

    try:
        with pa.OSFile(str(path)) as stream:
            head = stream.read(6)
            stream.seek(0)
            if head == b"ARROW1":
                file = pa.ipc.open_file(stream)
                batches: Any = (file.get_batch(i) for i in range(file.num_record_batches))
            else:
                batches = pa.ipc.open_stream(stream)
            for batch in batches:
                for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                    yield from batch.slice(start, ROWS_PER_BATCH).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Arrow file: {error}", "copy or write it again") from error
