"""Rows from files of every kind, folders and the embedded pairs; damage is named with its place."""

import bz2
import csv
import gzip
import json
import lzma
import os

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from qdpo.data.files.readers import Broken
from qdpo.data.files.sources import find_source, has_splits
from qdpo.errors import DataError, InputMissingError, UnavailableError

ROWS = [{"prompt": f"question {i} é🙂", "chosen": f"good\n{i}", "rejected": f'bad, "{i}"'} for i in range(700)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


PRETTY = "\n".join(json.dumps(row, indent=2, ensure_ascii=False) for row in ROWS).encode()
COLUMNS = {column: [row[column] for row in ROWS] for column in ROWS[0]}
VIEWER = {
    "features": [{"feature_idx": 0, "name": "prompt", "type": {}}],
    "rows": [{"row_idx": i, "row": row, "truncated_cells": []} for i, row in enumerate(ROWS)],
    "num_rows_total": 700,
}


def packed(path, content, compression="zstd"):
    with pa.output_stream(str(path), compression=compression) as stream:
        stream.write(content)
    return path.read_bytes()


def written(path, delimiter=","):
    write_csv(path, delimiter)
    return path.read_bytes()


def write_csv(path, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS = {
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "blank-lines.jsonl": lambda path: path.write_bytes(b"\n  \n" + LINES.replace(b"\n", b"\n\n")),
    "no-newline-at-end.jsonl": lambda path: path.write_bytes(LINES.rstrip()),
    "crlf.jsonl": lambda path: path.write_bytes(LINES.replace(b"\n", b"\r\n")),
    "bom.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + LINES),
    "lines.json": lambda path: path.write_bytes(LINES),
    "list.json": lambda path: path.write_text(json.dumps(ROWS)),
    "list-indented.json": lambda path: path.write_text(json.dumps(ROWS, indent=2), encoding="utf-8-sig"),
    "list.jsonl": lambda path: path.write_text(json.dumps(ROWS)),
    "a.ndjson": lambda path: path.write_bytes(LINES),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "gzip-without-saying.jsonl": lambda path: path.write_bytes(gzip.compress(LINES)),
    "a.json.bz2": lambda path: path.write_bytes(bz2.compress(json.dumps(ROWS).encode())),
    "a.jsonl.xz": lambda path: path.write_bytes(lzma.compress(LINES)),
    "a.jsonl.zst": lambda path: packed(path, LINES, "zstd"),
    "a.jsonl.lz4": lambda path: packed(path, LINES, "lz4"),
    "zst-in-two-parts.jsonl.zst": lambda path: path.write_bytes(
        packed(path, LINES[:5000]) + packed(path, LINES[5000:])
    ),
    "list.json.zst": lambda path: packed(path, json.dumps(ROWS).encode()),
    "a.csv.zst": lambda path: packed(path, written(path)),
    "a.csv.gz": lambda path: path.write_bytes(gzip.compress(written(path))),
    "a.tsv.bz2": lambda path: path.write_bytes(bz2.compress(written(path, "\t"))),
    "a.csv.xz": lambda path: path.write_bytes(lzma.compress(written(path))),
    "table.json.zst": lambda path: packed(path, json.dumps({"data": ROWS}).encode()),
    "pretty.jsonl.xz": lambda path: path.write_bytes(lzma.compress(PRETTY)),
    "a.csv": write_csv,
    "a.tsv": lambda path: write_csv(path, "\t"),
    "A.TSV": lambda path: write_csv(path, "\t"),
    "semicolons.csv": lambda path: write_csv(path, ";"),
    "tabs.csv": lambda path: write_csv(path, "\t"),
    "bars.csv": lambda path: write_csv(path, "|"),
    "commas.tsv": write_csv,
    "bom.csv": lambda path: path.write_bytes(b"\xef\xbb\xbf" + written(path, ";")),
    "excel.csv": lambda path: path.write_bytes(b"sep=;\r\n" + written(path, ";")),
    "cr.csv": lambda path: path.write_bytes(written(path).replace(b"\r\n", b"\r")),
    "lf.csv": lambda path: path.write_bytes(written(path).replace(b"\r\n", b"\n")),
    "cr.jsonl": lambda path: path.write_bytes(LINES.replace(b"\n", b"\r")),
    "pretty.jsonl": lambda path: path.write_bytes(PRETTY),
    "pretty-crlf-bom.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + PRETTY.replace(b"\n", b"\r\n")),
    "in-one-line.jsonl": lambda path: path.write_bytes(LINES.replace(b"\n", b"")),
    "data.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS})),
    "one-key.json": lambda path: path.write_text(json.dumps({"anything": ROWS}, indent=2)),
    "rows.jsonl": lambda path: path.write_text(json.dumps({"rows": ROWS})),
    "viewer.json": lambda path: path.write_text(json.dumps(VIEWER)),
    "columns.json": lambda path: path.write_text(json.dumps(COLUMNS)),
    "pandas.json": lambda path: path.write_text(
        json.dumps({column: {str(i): value for i, value in enumerate(values)} for column, values in COLUMNS.items()})
    ),
    "pandas-index.json": lambda path: path.write_text(json.dumps({str(i): row for i, row in enumerate(ROWS)})),
    "pandas-split.json": lambda path: path.write_text(
        json.dumps({"columns": list(COLUMNS), "index": [*range(700)], "data": [list(row.values()) for row in ROWS]})
    ),
    "json-named.csv": lambda path: path.write_bytes(LINES),
    "lines.txt": lambda path: path.write_bytes(LINES),
    "list-without-extension": lambda path: path.write_text(json.dumps(ROWS)),
    "gzip-without-extension": lambda path: path.write_bytes(gzip.compress(LINES)),
    "csv-without-extension": write_csv,
    "tabs.txt": lambda path: write_csv(path, "\t"),
    "other.data": lambda path: path.write_bytes(LINES),
    "arrow-without-extension": lambda path: pyarrow.feather.write_feather(pa.Table.from_pylist(ROWS), path),
    "a.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=50),
    "parquet-without-saying": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "a.feather": lambda path: pyarrow.feather.write_feather(pa.Table.from_pylist(ROWS), path),
    "folder": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(path),
    "dict": lambda path: datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_gives_the_same_rows(name: str, tmp_path):
    WRITERS[name](tmp_path / name)
    assert list(find_source(str(tmp_path / name)).rows()) == ROWS


def test_items_longer_than_what_is_read_at_once(tmp_path):
    rows = [{"prompt": "x" * 1_500_000}, {"prompt": "y" * 3_000_000}, {"prompt": "z"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert list(find_source(str(tmp_path / "a.json")).rows()) == rows
    assert list(find_source(str(tmp_path / "a.jsonl")).rows()) == rows


def test_numbers_that_end_where_a_chunk_ends(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("qdpo.data.files.json_values.CHUNK", 7)
    (tmp_path / "a.json").write_text('[12345, 678901, 23456789012, {"a": [1, 2]}, "b"]')
    assert list(find_source(str(tmp_path / "a.json")).rows()) == [12345, 678901, 23456789012, {"a": [1, 2]}, "b"]


def test_rows_are_read_one_at_a_time(tmp_path):
    """The first row comes before the damage further on is seen."""
    (tmp_path / "a.json").write_text(json.dumps(ROWS)[:-1])
    rows = find_source(str(tmp_path / "a.json")).rows()
    assert next(rows) == ROWS[0]
    with pytest.raises(DataError, match="after 700 items the file ends"):
        list(rows)


def test_damaged_lines_are_told_apart_from_the_others(tmp_path):
    good = json.dumps(ROWS[0]).encode()
    lines = [good, b'{"a": 1', b"\xff\xfe", b'{"a": 1, "a": 2}', b"[" * 100_000, good]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    rows = list(find_source(str(tmp_path / "a.jsonl")).rows())
    assert rows[0] == rows[-1] == ROWS[0]
    assert [row.reason for row in rows[1:-1] if isinstance(row, Broken)] == [
        "the line is not JSON",
        "the line is not UTF-8",
        "the line has a key twice",
        "the line is not JSON",
    ]
    assert rows[1].example.endswith(': {"a": 1')
    assert rows[3].example.startswith('the key "a" occurs twice: ')
    assert all(len(row.example) < 300 and row.fix for row in rows[1:-1])
    assert [number for number, _ in find_source(str(tmp_path / "a.jsonl")).numbered()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("name", "content", "unit", "numbers"),
    [
        ("a.jsonl", '{"n": 1}\n\n{"n": 2}\n{"n"\n', "line", [1, 3, 4]),
        ("a.json", '{"n": 1}\n{"n": 2}\n', "line", [1, 2]),
        ("a.json", '[\n{"n": 1},\n\n{"n": 2}]', "row", [1, 2]),
        ("a.csv", 'n,m\n1,"two\nlines"\n\n3,4\n', "line", [2, 5]),
    ],
)
def test_rows_are_numbered_as_people_find_them(tmp_path, name: str, content: str, unit: str, numbers: list[int]):
    (tmp_path / name).write_text(content)
    source = find_source(str(tmp_path / name))
    assert source.unit == unit
    assert [number for number, _ in source.numbered()] == numbers


def test_rows_of_several_files_are_counted_through(tmp_path):
    (tmp_path / "train-0.jsonl").write_text('{"n": 1}\n\n{"n": 2}\n')
    (tmp_path / "train-1.jsonl").write_text("\n")
    (tmp_path / "train-2.jsonl").write_text('{"n": 3}\n')
    assert list(find_source(str(tmp_path)).numbered()) == [(1, {"n": 1}), (3, {"n": 2}), (4, {"n": 3})]


def test_folders_by_split(tmp_path):
    (tmp_path / "train-00001-of-00002.jsonl").write_text('{"n": 2}\n')
    (tmp_path / "train-00000-of-00002.jsonl").write_text('{"n": 1}\n')
    (tmp_path / "test.jsonl").write_text('{"n": 3}\n')
    (tmp_path / "README.md").write_text("text")
    assert list(find_source(str(tmp_path)).rows()) == [{"n": 1}, {"n": 2}]
    assert list(find_source(str(tmp_path), split="test").rows()) == [{"n": 3}]
    with pytest.raises(InputMissingError, match="'dev'") as caught:
        find_source(str(tmp_path), split="dev").rows()
    assert "test.jsonl" in str(caught.value.hint)


def test_what_has_splits(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    assert [has_splits(name) for name in ("quickstart", "owner/name", str(tmp_path))] == [True] * 3
    files = (str(tmp_path / "a.jsonl"), "missing.jsonl", "./x", "a.csv.gz", "A.CSV")
    assert [has_splits(name) for name in files] == [False] * 5


def test_the_identity_changes_with_the_content_alone(tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_bytes(LINES)
    two.write_bytes(LINES)
    first = find_source(str(one)).identity()
    assert find_source(str(two)).identity() == first
    os.utime(one, (1, 1))
    assert find_source(str(one)).identity() == first
    one.write_bytes(LINES.replace(b"good", b"fine", 1))
    assert find_source(str(one)).identity() != first


def test_hub_failures_are_explained(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UnavailableError, match="cannot be reached and nobody/nothing-of-this-name is not in the local"):
        find_source("nobody/nothing-of-this-name").rows()
    raised = {
        "has no dataset": datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub"),
        "is gated": datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub."),
        "cannot be loaded: Dataset scripts are no longer": RuntimeError("Dataset scripts are no longer supported"),
    }
    for words, error in raised.items():

        def fail(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(datasets, "load_dataset", fail)
        with pytest.raises(UnavailableError, match=words):
            find_source("a/b").rows()


def test_hub_splits_and_configurations_are_data_errors(monkeypatch: pytest.MonkeyPatch):
    def fail(*args, **kwargs):
        raise ValueError("Unknown split \"dev\". Should be one of ['train'].")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match="Unknown split") as caught:
        find_source("a/b", split="dev").rows()
    assert caught.value.hint == "check data.config and data.split"
