"""Defects of whole files, through `qdpo data`: exit code, one bounded message that names what it is, no traceback."""

import gzip
import io
import json
import lzma
import pickle
import re
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qdpo.cli.main import main

ROWS = [{"prompt": f"question {i}", "chosen": f"yes {i}, café", "rejected": f"no {i}"} for i in range(40)]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
LINES = TEXT.encode()
CSV = "prompt,chosen,rejected\n" + "".join(",".join(f'"{value}"' for value in row.values()) + "\n" for row in ROWS)
JAPANESE = "".join(json.dumps({"prompt": "東京はどこですか" * 3}, ensure_ascii=False) + "\n" for _ in ROWS)
RUSSIAN = "".join(json.dumps({"prompt": "Где находится Москва"}, ensure_ascii=False) + "\n" for _ in ROWS)
KOREAN = "".join(json.dumps({"prompt": "서울은 어디에 있습니까"}, ensure_ascii=False) + "\n" for _ in ROWS)
CHINESE = "".join(json.dumps({"prompt": "北京在哪里？请说明。"}, ensure_ascii=False) + "\n" for _ in ROWS)


def zipped(*members: str) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in members:
            archive.writestr(member, LINES)
    return target.getvalue()


def open_document(kind: str) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("mimetype", f"application/vnd.oasis.opendocument.{kind}")
        archive.writestr("content.xml", b"<office/>")
    return target.getvalue()


def tar(mode: str) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode) as archive:
        entry = tarfile.TarInfo("pairs.jsonl")
        entry.size = len(LINES)
        archive.addfile(entry, io.BytesIO(LINES))
    return target.getvalue()


def numpy_array() -> bytes:
    target = io.BytesIO()
    np.save(target, np.arange(30))
    return target.getvalue()


def sqlite() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("create table pairs (prompt text)")
    return connection.serialize()


def parquet(compression: str = "snappy") -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink, compression=compression)
    return sink.getvalue().to_pybytes()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def arrow() -> bytes:
    sink, table = pa.BufferOutputStream(), pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


CUT = b"\xc3\xa9", b"\xc3e"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n"
HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>" + b"x" * 9000 + b"</body></html>"
PYTHON = "".join(f"{row}\n" for row in ROWS).encode()
SAFETENSORS = (40).to_bytes(8, "little") + b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + bytes(4)
JUNK = np.random.default_rng(1).bytes(5000)
PRETTY = json.dumps(ROWS[0], indent=1).encode()
COMMAS = LINES.replace(b"}\n", b"},\n")
LIST = f"[{TEXT.replace(chr(10), ',')[:-1]}]"
TWO = LINES.replace(b"}\n", b"}", 1)
BARS = CSV.replace("prompt,", "prompt,a|b|c,", 1).replace('"question', '"x","question').encode()
BY_COLUMN = {column: [row[column] for row in ROWS] for column in ROWS[0]}

# name: (file name, content, exit code, what the message says)
DEFECTS: dict[str, tuple[str, bytes, int, list[str]]] = {
    # ---- something else in place of the data
    "LFS pointer": ("a.jsonl", LFS, 65, ["Git LFS pointer", "git lfs pull"]),
    "LFS pointer named Parquet": ("a.parquet", LFS, 65, ["Git LFS pointer", "git lfs pull"]),
    "LFS pointer named CSV": ("a.csv", LFS, 65, ["Git LFS pointer"]),
    "HTML": ("a.jsonl", HTML, 65, ["HTML page", "/resolve/"]),
    "HTML named CSV": ("a.csv", b"\n\n" + HTML, 65, ["HTML page"]),
    "HTML named Parquet": ("a.parquet", HTML, 65, ["HTML page"]),
    "HTML in gzip": ("a.json.gz", gzip.compress(HTML), 65, ["HTML page"]),
    "XML error": (
        "a.jsonl",
        b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        65,
        ["error message in"],
    ),
    "server's answer": ("a.jsonl", b"Entry not found", 65, ["server's answer", "Entry not found"]),
    "server's error": ("a.json", b'{"error": "Repository not found"}', 65, ["server's error", "Repository not found"]),
    # ---- other kinds of files
    "tar": ("a.tar", tar("w"), 65, ["tar archive", "tar xf"]),
    "tar.gz": ("a.jsonl.tar.gz", tar("w:gz"), 65, ["tar archive"]),
    "tar.xz": ("a.tar.xz", tar("w:xz"), 65, ["tar archive"]),
    "zip": ("a.zip", zipped("pairs.jsonl"), 65, ["ZIP archive", "unzip"]),
    "xlsx": ("a.xlsx", zipped("[Content_Types].xml", "xl/workbook.xml"), 65, ["Excel workbook", "CSV"]),
    "xlsx named csv": ("a.csv", zipped("_rels/.rels", "xl/sharedStrings.xml"), 65, ["Excel workbook", "CSV"]),
    "xls": ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), 65, ["old Excel", "CSV"]),
    "docx": ("a.docx", zipped("[Content_Types].xml", "word/document.xml"), 65, ["Word document"]),
    "ods": ("a.ods", open_document("spreadsheet"), 65, ["OpenDocument sheet", "CSV"]),
    "odt": ("a.odt", open_document("text"), 65, ["OpenDocument file"]),
    "npz": ("a.npz", zipped("a.npy"), 65, ["NumPy arrays"]),
    "PyTorch": ("a.pt", zipped("archive/data.pkl"), 65, ["PyTorch file"]),
    "SQLite": ("a.db", sqlite(), 65, ["SQLite database", "sqlite3"]),
    "PDF": ("a.pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + JUNK, 65, ["PDF"]),
    "pickle": ("a.pkl", pickle.dumps(ROWS, 5), 65, ["pickle", "runs code"]),
    "pickle of protocol 2": ("a.jsonl", pickle.dumps(ROWS, 2), 65, ["pickle"]),
    "NumPy": ("a.npy", numpy_array(), 65, ["NumPy array"]),
    "safetensors": ("a.safetensors", SAFETENSORS, 65, ["safetensors"]),
    "GGUF": ("a.gguf", b"GGUF\x03\x00\x00\x00" + bytes(64), 65, ["GGUF model"]),
    "7z": ("a.7z", b"7z\xbc\xaf\x27\x1c\x00\x04" + JUNK, 65, ["7z archive"]),
    "junk": ("a.jsonl", JUNK, 65, ["binary data"]),
    "junk without extension": ("a", JUNK, 65, ["binary data"]),
    "zeros": ("a.jsonl", bytes(5000), 65, ["begins with 5,000 zero bytes"]),
    "control characters": ("a.csv", bytes(range(1, 9)) * 99, 65, ["binary data"]),
    "Parquet in gzip": ("a.parquet.gz", gzip.compress(parquet()), 65, ["Parquet inside of gzip", "gunzip"]),
    "Arrow with a letter that is cut": (
        "a.arrow",
        arrow().replace(*CUT),
        65,
        ["not a readable Arrow"],
    ),
    "Parquet with a letter that is cut": (
        "a.parquet",
        parquet("none").replace(*CUT),
        65,
        ["not a readable"],
    ),
    # ---- encodings
    "UTF-16": ("a.jsonl", TEXT.encode("utf-16"), 65, ["UTF-16", "iconv -f UTF-16 -t UTF-8"]),
    "UTF-16 without a mark": ("a.jsonl", TEXT.encode("utf-16-le"), 65, ["UTF-16LE", "iconv -f UTF-16LE"]),
    "UTF-16BE without a mark": ("a.csv", CSV.encode("utf-16-be"), 65, ["UTF-16BE", "iconv -f UTF-16BE"]),
    "UTF-32": ("a.jsonl", TEXT.encode("utf-32"), 65, ["UTF-32", "iconv -f UTF-32"]),
    "UTF-32 without a mark": ("a.jsonl", TEXT.encode("utf-32-be"), 65, ["UTF-32BE"]),
    "Windows-1252": ("a.jsonl", TEXT.encode("cp1252"), 65, ["not UTF-8, it looks like", "iconv -f WINDOWS-1252 -t"]),
    "Windows-1252 CSV": ("a.csv", CSV.encode("cp1252"), 65, ["not UTF-8, it looks", "iconv -f WINDOWS-1252"]),
    "Windows-1252 in one line": ("a.json", LIST.encode("cp1252"), 65, ["not UTF-8, it looks", "iconv -f WINDOWS-1252"]),
    "Windows-1252 further down": (
        "a.csv",
        (CSV.replace("é", "e") + f"{'x,y,z':o<9000}\n" * 20).encode() + CSV.encode("cp1252"),
        65,
        ["after line 60", "not UTF-8, it looks like", "iconv -f WINDOWS-1252"],
    ),
    "Windows-1252 further down in a list": (
        "a.json",
        json.dumps(ROWS * 20)[:-1].encode() + b", " + LIST[1:].encode("cp1252"),
        65,
        ["after 0 items there is text that is not UTF-8, it looks like", "iconv -f WINDOWS-1252"],
    ),
    "one line in another encoding": (
        "a.jsonl",
        LINES + b'{"prompt": "caf\xe9", "chosen": "\xe9t\xe9"}\n' + LINES,
        65,
        [
            "1 of 81 rows",
            "the line is not UTF-8",
            "as the other lines are",
            "from byte 15, it looks like WINDOWS",
        ],
    ),
    "Shift JIS": ("a.jsonl", JAPANESE.encode("cp932"), 65, ["not UTF-8, it looks", "iconv -f SHIFT_JIS"]),
    "EUC-JP": ("a.jsonl", JAPANESE.encode("euc_jp"), 65, ["not UTF-8, it looks", "iconv -f EUC-JP"]),
    "EUC-KR": ("a.jsonl", KOREAN.encode("euc_kr"), 65, ["not UTF-8, it looks", "iconv -f EUC-KR"]),
    "GB18030": ("a.jsonl", CHINESE.encode("gb18030"), 65, ["not UTF-8, it looks", "iconv -f GB18030"]),
    "Windows-1251": ("a.jsonl", RUSSIAN.encode("cp1251"), 65, ["not UTF-8, it looks", "iconv -f WINDOWS-1251"]),
    # ---- cut off, and other damage
    "cut off": ("a.jsonl", LINES[:-20], 65, ["1 of 40 rows", "cut off", "39 whole rows", "line 40"]),
    "cut off inside of a letter": (
        "a.jsonl",
        LINES[: LINES.rindex(b"\xa9")],
        65,
        ["1 of 40 rows", "cut off", "line 40"],
    ),
    "list that is cut off": ("a.json", json.dumps(ROWS)[:-30].encode(), 65, ["after 39 items", "cut off"]),
    "values that are cut off": (
        "a.jsonl",
        json.dumps(ROWS[0], indent=1).encode() * 3 + b'{\n"a',
        65,
        ["after 3 rows", "cut off"],
    ),
    "table that is cut off": ("a.json", json.dumps({"data": ROWS})[:-99].encode(), 65, ["1 of 1 row", "cut off"]),
    "pretty table that is cut off": ("a.json", json.dumps({"data": ROWS}, indent=1)[:-99].encode(), 65, ["cut off"]),
    "pretty table with damage": (
        "a.json",
        json.dumps({"data": ROWS}, indent=1).replace('"question 3"', "question 3").encode(),
        65,
        ["not JSON", "in line 19", "question 3"],
    ),
    "zeros at the end": ("a.jsonl", LINES + bytes(4096), 65, ["1 of 41 rows", "zero bytes", "line 41"]),
    "truncated zstd": ("a.jsonl.zst", zstd(LINES * 50)[:-9], 65, ["middle of its compressed data"]),
    "truncated xz": ("a.jsonl.xz", lzma.compress(LINES)[:-30], 65, ["middle of its compressed data"]),
    "empty gzip": ("a.jsonl.gz", gzip.compress(b""), 65, ["empty when it is unpacked"]),
    # ---- not quite JSON
    "Python": ("a.jsonl", PYTHON, 65, ["40 of 40 rows", "not JSON but Python", "json.dumps"]),
    "Python list": ("a.json", repr(ROWS).encode(), 65, ["but Python", "json.dumps"]),
    "Python's None": ("a.jsonl", LINES + b'{"prompt": None}\n', 65, ["1 of 41 rows", "but Python", "line 41"]),
    "comma at the end of lines": (
        "a.jsonl",
        LINES.replace(b"}\n", b"},\n"),
        65,
        ["40 of 40 rows", "ends with a comma"],
    ),
    "comma before a brace": ("a.jsonl", LINES.replace(b"}", b",}"), 65, ["40 of 40 rows", "a comma before }"]),
    "comma before a bracket": ("a.json", json.dumps(ROWS)[:-1].encode() + b", ]", 65, ["comma before `]`"]),
    "two in a line": ("a.jsonl", TWO, 0, []),
    "two in a line further down": (
        "a.jsonl",
        LINES + LINES.replace(b"}\n", b"}", 1),
        65,
        ["several objects", "line 41"],
    ),
    "comment": ("a.jsonl", b"// my pairs\n" + LINES, 65, ["1 of 41 rows", "a comment", "line 1"]),
    "merge conflict": ("a.jsonl", LINES + b"<<<<<<< HEAD\n" + LINES, 65, ["1 of 81 rows", "git merge", "line 41"]),
    "curly quotes": ("a.jsonl", "{“prompt”: “a”}\n".encode() + LINES, 65, ["1 of 41 rows", "curly quotes"]),
    "raw tab": ("a.jsonl", LINES + b'{"prompt": "a\tb"}\n', 65, ["1 of 41 rows", "a raw tab"]),
    "backslash": ("a.jsonl", LINES + b'{"prompt": "C:\\dir"}\n', 65, ["1 of 41 rows", "a backslash"]),
    "not a number": ("a.jsonl", LINES + b'{"prompt": NaN, "chosen": "a", "rejected": "b"}\n', 65, ["1 of 41", "NaN"]),
    "Markdown fence": ("a.jsonl", b"```json\n" + LINES + b"```\n", 65, ["Markdown code fence"]),
    "YAML": ("a.json", b"- prompt: a\n  chosen: b\n  rejected: c\n", 65, ["YAML", "JSON Lines"]),
    "YAML with a mark": ("a.yaml", b"---\npairs:\n- prompt: a\n", 65, ["YAML"]),
    "JavaScript": ("a.json", b"const pairs = [\n  {prompt: 'a'}\n]\n", 65, ["program's text"]),
    "Python program": ("a", b"import json\n\nprint(1)\n", 65, ["a Python program"]),
    "CSV named jsonl": ("a.jsonl", CSV.encode(), 65, ["holds CSV, not JSON", ".csv"]),
    "prose": ("a.txt", b"Dear Sir,\nthis is no data.\n", 65, ["neither JSON nor CSV"]),
    # ---- tables that do not fit together
    "columns of two lengths": (
        "a.json",
        json.dumps(BY_COLUMN | {"chosen": ["a"]}).encode(),
        65,
        ["columns of different lengths", '"chosen" 1', '"prompt" 40'],
    ),
    "two lists": ("a.json", json.dumps({"data": ROWS, "rows": ROWS}).encode(), 65, ["several lists of rows", "jq"]),
    "split with a short row": (
        "a.json",
        json.dumps({"columns": ["prompt", "chosen"], "data": [["a", "b"], ["c"]]}).encode(),
        65,
        ["1 of 2 rows", "`columns`"],
    ),
    "a key twice in a list": ("a.json", b'[{"a": 1, "a": 2}]', 65, ["after 0 items", '"a" occurs twice']),
    "nothing in it": ("a.json", b'{"data": []}', 65, ["has no rows"]),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left behind is not looked for: that takes longer than all the rest."""
    monkeypatch.setattr("qdpo.api.process.gc.collect", lambda: 0)


@pytest.mark.parametrize("name", DEFECTS)
def test_it_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file, content, code, parts = DEFECTS[name]
    (tmp_path / file).write_bytes(content)
    assert main(["data", str(tmp_path / file)]) == code
    out, err = capsys.readouterr()
    said = " ".join(err.replace(str(tmp_path), "").split())
    for part in parts:
        assert part in said, said
    assert "Traceback" not in said
    assert "internal error" not in said
    assert len(said) < 1200, said
    assert len(re.findall("^error: ", err, re.M)) == (code != 0)
    assert not (code and out)


def test_there_are_enough():
    assert len(DEFECTS) >= 70


HARMLESS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "HTML in an answer": ("a.jsonl", lambda: LINES.replace(b"yes", b"<html>yes")),
    "a first question about errors": ("a.csv", lambda: CSV.replace("question 0", "Entry not found").encode()),
    "Python in an answer": ("a.jsonl", lambda: LINES.replace(b"yes", b"{'a': None}, yes")),
    "zero bytes in an answer": ("a.jsonl", lambda: LINES.replace(b"yes", b"\\u0000yes")),
    "a model's key in a row": ("a.json", lambda: json.dumps([row | {"error": "none"} for row in ROWS]).encode()),
    "texts of other scripts": ("a.csv", lambda: CSV.replace("yes", "да 東京 서울 نعم").encode()),
    "semicolons in texts": ("a.csv", lambda: CSV.replace("yes", "a;b;c;d").encode()),
    "bars in names": (
        "a.csv",
        lambda: CSV.replace("prompt,", "prompt,a|b|c,", 1).replace('"question', '"x","question').encode(),
    ),
}


def test_how_a_file_is_read_is_in_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.json").write_text(json.dumps({"data": ROWS}))
    (tmp_path / "a.csv").write_text(CSV.replace('","', '";"').replace(",", ";", 2))
    assert main(["data", str(tmp_path / "a.json"), "--report", str(tmp_path / "report.json")]) == 0
    assert main(["data", str(tmp_path / "a.csv")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert 'pairs (columns prompt, chosen, rejected (text); the rows under the key "data")' in out
    assert "pairs (columns prompt, chosen, rejected (text); fields between semicolons)" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["train"]["format_reason"].endswith('; the rows under the key "data"')


@pytest.mark.parametrize("name", HARMLESS)
def test_what_looks_like_a_defect_and_is_none_is_read(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file, content = HARMLESS[name]
    (tmp_path / file).write_bytes(content())
    code = main(["data", str(tmp_path / file), *(["--set", "data.columns={prompt: a|b|c}"] if "bars" in name else [])])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "rows read" in out
