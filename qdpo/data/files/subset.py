"""Some rows of a data file as a file of the same form: what is not chosen is missing, all else is as it was."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from qdpo.data.files.encodings import UTF8_MARK
from qdpo.data.files.kinds import look
from qdpo.data.files.packed import unpacked
from qdpo.data.files.readers import numbered
from qdpo.errors import OutputError
from qdpo.files import atomic_write
from qdpo.paths import check_file

NAMES = {
    "json": (".jsonl", ".json", ".ndjson"),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "parquet": (".parquet",),
    "arrow": (".arrow", ".feather"),
}
"""What a file of each kind may be called."""


def check_name(source: Path, out: Path) -> None:
    """Refuse a name under which the rows would be read as something else than they are, or that is taken.

    Raises:
        OutputError: the name does not fit, or exists.
        DataError: the source is of no known kind.
    """
    fitting = NAMES[look(source).kind]
    suffixes = [suffix.lower() for suffix in out.suffixes]
    if not suffixes or suffixes[-1] not in fitting:
        packed = suffixes[-2:-1] and suffixes[-2] in fitting
        raise OutputError(
            f"{out}: the rows are written uncompressed, which this name does not say"
            if packed
            else f"{out}: the rows stay in the form of {source.name}, which this name does not say",
            f"let it end in {' or '.join(fitting)}",
        )
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out} exists and is left as it is", "give the name of a new file")
    check_file(out)


def write_rows(source: Path, rows: Collection[int], out: Path) -> None:
    """Write some rows of a file, in their order.

    Lines of JSON are copied byte for byte; Parquet and Arrow keep their schema; all is written uncompressed.

    Args:
        source: a file that `qdpo.data.files.readers` reads.
        rows: their numbers, as `readers.numbered` gives them.
        out: a new file, see `check_name`.

    Raises:
        DataError: the source is damaged.
        OutputError: `out` cannot be written.
    """
    kind = look(source).kind
    writers: dict[str, Callable[[Path, Collection[int]], bytes]] = {
        "json": _json,
        "csv": _csv,
        "tsv": _csv,
        "parquet": _parquet,
        "arrow": _arrow,
    }
    atomic_write(out, writers[kind](source, rows if isinstance(rows, set | frozenset) else set(rows)))


def _json(source: Path, rows: Collection[int]) -> bytes:
    file = look(source)
    if not file.has_lines:
        kept = [json.dumps(row, ensure_ascii=False) for number, row in numbered(file) if number in rows]
        return ("[\n" + ",\n".join(kept) + "\n]\n").encode()
    with unpacked(source) as stream:
        chosen = (line for number, line in enumerate(stream, 1) if number in rows)
        return b"".join(line.removeprefix(UTF8_MARK).rstrip(b"\r\n") + b"\n" for line in chosen)


def _csv(source: Path, rows: Collection[int]) -> bytes:
    text = io.StringIO(newline="")
    writer: Any = None
    file = look(source)
    for number, row in numbered(file):
        if number in rows:
            if writer is None:
                writer = csv.DictWriter(text, list(row), delimiter=file.delimiter, lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
    return text.getvalue().encode()


def _parquet(source: Path, rows: Collection[int]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(source) as file, pa.BufferOutputStream() as sink:
        with pq.ParquetWriter(sink, file.schema_arrow) as writer:
            for batch in _some(file.iter_batches(), rows):
                writer.write_batch(batch)
        return bytes(sink.getvalue())


def _arrow(source: Path, rows: Collection[int]) -> bytes:
    import pyarrow as pa

    with pa.OSFile(str(source)) as stream, pa.BufferOutputStream() as sink:
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        reader: Any = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
        with (pa.ipc.new_file if is_file else pa.ipc.new_stream)(sink, reader.schema) as writer:
            for batch in _some(batches, rows):
                writer.write_batch(batch)
        return bytes(sink.getvalue())


def _some(batches: Any, rows: Collection[int]) -> Any:
    """The chosen rows of Arrow record batches, batch by batch."""
    import pyarrow as pa

    start = 1
    for batch in batches:
        mask = [number in rows for number in range(start, start + batch.num_rows)]
        start += batch.num_rows
        if any(mask):
            yield batch.filter(pa.array(mask))
