"""Some rows of a file as a file of the same form: read again, they are the rows that were chosen."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qdpo.data.files import readers, subset
from qdpo.data.files.kinds import look
from qdpo.errors import OutputError

ROWS = [{"prompt": f'say "{i}", ü', "chosen": f"yes\n{i}", "rejected": "no", "score": 1.50 + i} for i in range(9)]
KEPT = [1, 4, 8]


def write(path: Path) -> Path:
    """The rows as a file whose form its name says."""
    table = pa.Table.from_pylist(ROWS)
    if path.suffix == ".json":
        path.write_text(json.dumps(ROWS, indent=1))
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(ROWS[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    elif path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=4)
    elif path.suffix == ".feather":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    elif path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.feather", "a.arrow"])
def test_read_again_they_are_the_chosen_rows(tmp_path: Path, name: str) -> None:
    source, out = write(tmp_path / name), tmp_path / f"part-{name}"
    every = list(readers.read(source))
    subset.check_name(source, out)
    numbers = [number for number, _ in readers.numbered(look(source))]
    subset.write_rows(source, [numbers[i] for i in KEPT], out)
    assert list(readers.read(out)) == [every[i] for i in KEPT]
    assert len(every) == len(ROWS)


def test_lines_are_copied_byte_for_byte(tmp_path: Path) -> None:
    """Rows are named by their lines, blank ones counted; a byte order mark is no part of a row."""
    lines = [b'{"prompt":"a",  "n": 1.50}', b'{"prompt": "\\u00fc"}', b"{broken", '{"prompt": "ü"}'.encode()]
    source, out = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    source.write_bytes(b"\xef\xbb\xbf" + lines[0] + b"\r\n\n  \n" + b"\n".join(lines[1:]))
    assert len(list(readers.read(source))) == 4
    subset.write_rows(source, [1, 4, 6], out)
    assert out.read_bytes() == b"\n".join([lines[0], lines[1], lines[3]]) + b"\n"


def test_packed_lines_are_unpacked(tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl"
    source.write_bytes(gzip.compress(write(tmp_path / "a.jsonl").read_bytes()))
    subset.write_rows(source, [i + 1 for i in KEPT], out)
    assert list(readers.read(out)) == [ROWS[i] for i in KEPT]


def test_a_schema_stays(tmp_path: Path) -> None:
    """Types that JSON does not have, and the file's own metadata."""
    schema = pa.schema([("prompt", pa.large_string()), ("n", pa.int16())], metadata={"made": "by hand"})
    pq.write_table(pa.Table.from_pylist([{"prompt": "a", "n": i} for i in range(5)], schema), tmp_path / "a.parquet")
    subset.write_rows(tmp_path / "a.parquet", [4], tmp_path / "b.parquet")
    found = pq.read_table(tmp_path / "b.parquet")
    assert found.schema.equals(schema, check_metadata=True)
    assert found.to_pylist() == [{"prompt": "a", "n": 3}]


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("b.csv", "the form of a.jsonl"),
        ("B.JSONL.zst", "uncompressed"),
        ("b", ".jsonl"),
        ("b.jsonl.gz", "uncompressed"),
        ("a.jsonl", "exists"),
        ("no/b.jsonl", "no folder"),
    ],
)
def test_names_that_say_something_else_are_refused(tmp_path: Path, out: str, says: str) -> None:
    source = write(tmp_path / "a.jsonl")
    before = source.read_bytes()
    with pytest.raises(OutputError) as error:
        subset.check_name(source, tmp_path / out)
    assert says in str(error.value)
    assert source.read_bytes() == before
