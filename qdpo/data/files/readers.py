"""Rows from a file: JSON Lines, other JSON, CSV, Parquet or Arrow; packed or not; one at a time.

What a file is, `qdpo.data.files.kinds` says. A record that is damaged on its own (a line that is not JSON) is yielded
as `Broken`, so that the caller can count it; a damaged file raises.

Records are numbered as people find them, from 1: by the line that they begin on where the file has lines, else by their
place among the rows.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qdpo.data.files.defects import why_not_json
from qdpo.data.files.encodings import not_utf8, seeming
from qdpo.data.files.json_values import DECODER, DuplicateKey, is_cut, items_of_list, read_table, values_in_turn
from qdpo.data.files.kinds import SEPARATOR, DataFile, is_named_data, look
from qdpo.data.files.packed import unpacked
from qdpo.errors import DataError, first_line
from qdpo.foreign import SHORT, shortened, shown
from qdpo.model.source import is_local

LARGEST_FIELD = 1 << 30
"""Characters of one CSV field; the csv module's own limit is 131,072."""
LONGEST_LINE = 256 << 20
"""Bytes of one line of JSON."""
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
    return is_local(name) or os.path.lexists(name) or is_named_data(Path(name))


def read(path: Path) -> Iterator[Any]:
    """The rows of a file, see `numbered`."""
    return (row for _, row in numbered(look(path)))


def numbered(file: DataFile) -> Iterator[tuple[int, Any]]:
    """The rows of a file, each with its number from 1: of its line where `has_lines`.

    Raises:
        DataError: the file is damaged; says where.
    """
    if file.kind in ("parquet", "arrow"):
        yield from enumerate((_parquet if file.kind == "parquet" else _arrow)(file), 1)
        return
    with unpacked(file.path, file.name) as stream:
        if file.kind in ("csv", "tsv"):
            yield from _csv(file, stream)
        elif file.shape == "lines":
            yield from _json_lines(file, stream)
        elif file.shape == "table":
            yield from enumerate(read_table(stream, file.name).rows, 1)
        else:
            yield from enumerate((items_of_list if file.shape == "list" else values_in_turn)(stream, file.name), 1)


def _json_lines(file: DataFile, stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    number = whole = 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        if not line.strip():
            continue
        try:
            # a byte order mark at the start of a file is not part of its text
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            row = DECODER.decode(text)
        except DuplicateKey as error:
            yield number, _broken(" has a key twice", "keep one of the two", str(error), line)
        except (ValueError, RecursionError) as error:
            if len(line) == LONGEST_LINE:
                raise DataError(
                    f"{file.name}: line {number} is longer than {LONGEST_LINE >> 20} MiB", "write one row a line"
                ) from error
            yield number, _cut_off(line, whole) if _is_cut(line, error) else _damaged(file, line, error)
        else:
            whole += 1
            yield number, row


def _is_cut(line: bytes, error: Exception) -> bool:
    """Whether a line ends without a line end where more was expected: only the last one of a file can."""
    if line.endswith(b"\n"):
        return False
    if isinstance(error, UnicodeDecodeError):
        return error.reason == "unexpected end of data"
    return isinstance(error, json.JSONDecodeError) and is_cut(error)


def _cut_off(line: bytes, whole: int) -> Broken:
    return _broken(
        " is not whole: the file ends in the middle of it, it was cut off",
        "copy or download the file again, or delete this line",
        f"{whole:,} whole rows before it",
        line,
    )


def _damaged(file: DataFile, line: bytes, error: Exception) -> Broken:
    if isinstance(error, UnicodeDecodeError):
        # it is told of all of a file before, see `foreign_encoding`; here other lines are UTF-8
        encoding = seeming(error)
        why = f"from byte {error.start}" + (f", it looks like {encoding}" if encoding else "")
        return _broken(" is not UTF-8", "write it as UTF-8, as the other lines are", why, line)
    if isinstance(error, json.JSONDecodeError):
        text = error.doc.strip()
        why, fix = why_not_json(text, error.msg, error.pos - error.doc.index(text))
    else:
        why, fix = why_not_json("", "", 0)
    return _broken(f" is not JSON{why}", fix, first_line(error), line)


def _broken(what: str, fix: str, why: str, line: bytes) -> Broken:
    start = shortened(line[:LOOKED_AT].decode("utf-8", "replace").strip(), SHORT)
    return Broken(f"the line{what}", fix, f"{why}: {start}")


def _csv(file: DataFile, stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    number = 1
    try:
        start, before = text.readline(), 0
        lines: Iterator[str] = text
        if SEPARATOR.fullmatch(start):
            before = 1
        else:
            lines = itertools.chain([start], text)
        rows = csv.reader(lines, delimiter=file.delimiter, strict=True)
        names = next(rows, [])
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(
                f"{file.name}: the column {shown(twice)} occurs twice", "rename one of them in its first line"
            )
        number = before + rows.line_num + 1
        for fields in rows:
            if len(fields) > len(names):
                fix = f"put a field with {shown(file.delimiter)} in quotes"
                yield number, Broken("more fields than columns", fix, shown(fields))
            elif fields:
                yield number, dict(itertools.zip_longest(names, fields))
            number = before + rows.line_num + 1  # a quoted field may go on over several lines
    except UnicodeDecodeError as error:
        raise not_utf8(file.name, f"after line {number - 1:,}", error) from error
    except csv.Error as error:
        raise DataError(f"{file.name}: not CSV in UTF-8: {error}", "repair or write it again") from error


def _parquet(file: DataFile) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file.path) as table:
            for batch in table.iter_batches(batch_size=ROWS_PER_BATCH):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file.name}: not a readable Parquet file: {shortened(str(error), 500)}",
            "copy or download it again: it may be cut off",
        ) from error


def _arrow(file: DataFile) -> Iterator[Any]:
    """Arrow in its file form (Feather) or its stream form (what `datasets` saves)."""
    import pyarrow as pa

    try:
        with pa.OSFile(str(file.path)) as stream:
            head = stream.read(6)
            stream.seek(0)
            if head == b"ARROW1":
                table = pa.ipc.open_file(stream)
                batches: Any = (table.get_batch(i) for i in range(table.num_record_batches))
            else:
                batches = pa.ipc.open_stream(stream)
            for batch in batches:
                # Arrow trusts the places that a file names, and damaged ones lie anywhere in memory
                batch.validate(full=True)
                for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                    yield from batch.slice(start, ROWS_PER_BATCH).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file.name}: not a readable Arrow file: {shortened(str(error), 500)}", "copy or write it again"
        ) from error
