"""Faulty datasets: each is found before a model is loaded, with what, where, how many, the first rows, and a way out.

Every file is made here, from a good one of 40 rows, with the fault that its name says.
"""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.toy_tokenizers import byte_level

from qdpo.config.schema import DataSection
from qdpo.data.faults import FaultyRows
from qdpo.data.prepare import prepare
from qdpo.errors import QdpoError

GOOD = [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(40)]
Write = Callable[[Path], str]


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def jsonl(rows: list[Any]) -> Write:
    return raw(lines(rows))


def raw(content: bytes, name: str = "a.jsonl") -> Write:
    def write(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return str(folder / name)

    return write


def changed(column: str, value: Any, *rows: int) -> Write:
    """The good rows, with one column of some rows (3 and 5) changed."""
    return jsonl([row | {column: value} if i in (rows or (3, 5)) else row for i, row in enumerate(GOOD)])


def without(*columns: str) -> Write:
    return jsonl([{k: v for k, v in row.items() if k not in columns} for row in GOOD])


def every(make: Callable[[int], dict[str, Any]]) -> Write:
    return jsonl([make(i) for i in range(40)])


def turn(role: str, text: str = "x") -> dict[str, str]:
    return {"role": role, "content": text}


def link(folder: Path) -> str:
    os.symlink(folder / "loop.jsonl", folder / "loop.jsonl")
    return str(folder / "loop.jsonl")


def parquet_cut_off(folder: Path) -> str:
    path = folder / "a.parquet"
    pq.write_table(pa.Table.from_pylist(GOOD), path)
    path.write_bytes(path.read_bytes()[:-20])
    return str(path)


def empty_folder(folder: Path) -> str:
    (folder / "README.md").write_text("nothing here")
    return str(folder)


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "a.jsonl")
    return str(folder / "a.jsonl")


def broken_line(text: bytes) -> Write:
    return raw(lines(GOOD[:7]) + text + b"\n" + lines(GOOD[7:]))


ROWS = ["2 of 40 rows", "lines 4, 6:"]
DROP = "data.on_bad_row=drop"

# name: (how to write it, exit code, what the message and the hint say)
FAULTS: dict[str, tuple[Write, int, list[str]]] = {
    # ---- columns
    "no rejected column": (
        without("rejected"),
        65,
        ["no known preference format", "columns prompt, chosen", "rejected"],
    ),
    "no chosen column": (without("chosen"), 65, ["no known preference format", "prompt, rejected"]),
    "no prompt column": (without("prompt"), 65, ["no known preference format", "chosen, rejected", "prompt: "]),
    "renamed columns": (
        every(lambda i: {"query": "q", "good": f"a{i}", "bad": "b"}),
        65,
        ["query, good, bad", "{prompt: query, chosen: good, rejected: bad}"],
    ),
    "a column missing in some rows": (
        jsonl([{"prompt": "q", "chosen": "a"} if i in (3, 5) else row for i, row in enumerate(GOOD)]),
        65,
        [*ROWS, "no column `rejected`", DROP],
    ),
    # ---- values
    "null": (changed("chosen", None), 65, [*ROWS, "`chosen` is null", DROP]),
    "null prompt": (changed("prompt", None), 65, [*ROWS, "`prompt` is null", DROP]),
    "number": (changed("rejected", 7), 65, [*ROWS, "`rejected` is a number, expected text", DROP]),
    "not a number": (changed("rejected", float("nan")), 65, [*ROWS, "`rejected` is a number, expected text"]),
    "true": (changed("rejected", True), 65, [*ROWS, "`rejected` is true or false, expected text"]),
    "empty answer": (changed("rejected", ""), 65, [*ROWS, "`rejected` is empty", DROP]),
    "white space": (changed("chosen", " \n\t "), 65, [*ROWS, "`chosen` is only white space", DROP]),
    "blank prompt": (changed("prompt", "  "), 65, [*ROWS, "`prompt` is only white space"]),
    "list of texts": (changed("chosen", ["a", "b"]), 65, [*ROWS, "`chosen` holds text, expected messages"]),
    "empty list": (changed("chosen", []), 65, [*ROWS, "`chosen` is an empty list"]),
    "object": (changed("chosen", {"text": "a"}), 65, [*ROWS, "`chosen` has an unknown role", "the role null"]),
    "identical": (
        jsonl([row | {"rejected": row["chosen"]} if i in (3, 5) else row for i, row in enumerate(GOOD)]),
        65,
        [*ROWS, "chosen and rejected are identical", DROP],
    ),
    "lone surrogate": (changed("prompt", "a\ud83d"), 65, [*ROWS, "`prompt` has a lone surrogate"]),
    "field of 10 MB": (
        changed("chosen", "word " * 2_000_000, 3),
        65,
        ["1 of 40 rows", "longer than 1,048,576", "line 4:"],
    ),
    "end of turn in an answer": (
        changed("chosen", "yes</s>no"),
        65,
        [*ROWS, "`chosen` contains the text of the end-of-"],
    ),
    "BOS in a prompt": (changed("prompt", "<s>hello"), 65, [*ROWS, "the prompt contains the text of the BOS"]),
    # ---- conversations
    "assistant last": (
        changed("prompt", [turn("user"), turn("assistant")]),
        65,
        [*ROWS, "the prompt ends with an assistant"],
    ),
    "roles out of order": (
        changed("prompt", [turn("user"), turn("user")]),
        65,
        [*ROWS, "roles out of order: user where assistant"],
    ),
    "system in the middle": (
        changed("prompt", [turn("user"), turn("system"), turn("user")]),
        65,
        [*ROWS, "roles out of order: system"],
    ),
    "unknown role": (
        changed("prompt", [turn("wizard")]),
        65,
        [*ROWS, 'the role "wizard"', "system, user or assistant"],
    ),
    "tool calls": (
        changed("prompt", [turn("user"), turn("tool")]),
        65,
        [*ROWS, "tool calls, which are not supported", 'the role "tool"'],
    ),
    "message without content": (changed("prompt", [{"role": "user"}]), 65, [*ROWS, "user message without content"]),
    "content is a number": (changed("prompt", [{"role": "user", "content": 3}]), 65, [*ROWS, "content is a number"]),
    "the user answers": (changed("chosen", [turn("user")]), 65, [*ROWS, "`chosen` starts with a user message"]),
    "different prompts": (
        every(
            lambda i: {
                "chosen": [turn("user", f"{i}"), turn("assistant")],
                "rejected": [turn("user"), turn("assistant")],
            }
        ),
        65,
        ["40 of 40 rows", "its prompt differs", "lines 1, 2, 3, 4, 5 and 35 more:"],
    ),
    "answers part early": (
        every(
            lambda i: {
                side: [turn("user"), turn("assistant", side), turn("user"), turn("assistant", side)]
                for side in ("chosen", "rejected")
            }
        ),
        65,
        ["40 of 40 rows", "part ways before their last answer"],
    ),
    # ---- made pairs
    "Winogrande without a gap": (
        every(lambda i: {"sentence": f"no gap {i}", "option1": "a", "option2": "b", "answer": "1"}),
        65,
        ["0 gaps `_`"],
    ),
    "Winogrande's test set": (
        every(lambda i: {"sentence": f"{i} _", "option1": "a", "option2": "b", "answer": ""}),
        65,
        ["expected 1 or 2"],
    ),
    "UltraFeedback without scores": (
        every(lambda i: {"instruction": f"{i}", "completions": [{"response": "a"}, {"response": "b"}]}),
        65,
        ["40 of 40 rows", "fewer than two scored `completions`"],
    ),
    "UltraFeedback, all ties": (
        every(lambda i: {"instruction": f"{i}", "completions": [{"response": c, "overall_score": 3} for c in "ab"]}),
        65,
        ["40 of 40 rows", "have the same score"],
    ),
    # ---- how many
    "no rows": (raw(b"\n\n"), 65, ["has no rows"]),
    "empty file": (raw(b""), 65, ["is empty", "0 bytes"]),
    "empty list file": (raw(b"[]", "a.json"), 65, ["has no rows"]),
    "one row": (jsonl(GOOD[:1]), 65, ["1 different prompt: too few to hold some out", "data.eval_name"]),
    "one prompt": (jsonl([r | {"prompt": "q"} for r in GOOD]), 65, ["40 pairs have 1 different prompt:"]),
    "all rows bad": (
        jsonl([r | {"chosen": ""} for r in GOOD]),
        65,
        ["40 of 40 rows", "lines 1, 2, 3, 4, 5 and 35 more:"],
    ),
    "mixed schemas": (
        jsonl([{"question": "q", "chosen": "a", "rejected": "b"} if i in (3, 5) else r for i, r in enumerate(GOOD)]),
        65,
        [*ROWS, "no column `prompt`"],
    ),
    # ---- cut to length (what is left depends on max_length=40, max_prompt_length=20)
    "identical after the cut": (
        jsonl([r | {side: "same " * 60 + side for side in ("chosen", "rejected")} for r in GOOD]),
        65,
        ["40 of 40 rows", "identical after cutting to max_length", "data.max_length"],
    ),
    # ---- files
    "broken JSON": (broken_line(b'{"prompt": "q", '), 65, ["1 of 41 rows", "not JSON", "line 8:", DROP]),
    "not an object": (broken_line(b'["prompt"]'), 65, ["1 of 41 rows", "the row is a list", "line 8:"]),
    "duplicate key": (broken_line(b'{"prompt": "q", "prompt": "r"}'), 65, ['the key "prompt" occurs twice', "line 8:"]),
    "not UTF-8": (broken_line(b'{"prompt": "\xe9"}'), 65, ["1 of 41 rows", "not UTF-8", "line 8:"]),
    "UTF-16": (raw(lines(GOOD).decode().encode("utf-16")), 65, ["UTF-16", "iconv"]),
    "deep nesting": (broken_line(b"[" * 50_000), 65, ["1 of 41 rows", "not JSON"]),
    "list that ends early": (raw(json.dumps(GOOD)[:-1].encode(), "a.json"), 65, ["after 40 items the file ends"]),
    "list with a broken item": (raw(b'[{"a": 1}, {"b": }]', "a.json"), 65, ["after 1 items"]),
    "one object in a .json": (
        raw(json.dumps({"about": "nothing"}, indent=1).encode(), "a.json"),
        65,
        ["no known preference format has the columns about"],
    ),
    "truncated gzip": (raw(gzip.compress(lines(GOOD))[:-30], "a.jsonl.gz"), 65, ["middle of its compressed data"]),
    "damaged gzip": (raw(gzip.compress(lines(GOOD))[:40] + b"x" * 99, "a.jsonl.gz"), 65, ["is damaged"]),
    "ZIP": (raw(b"PK\x03\x04rest", "a.jsonl"), 65, ["ZIP archive", "unpack it"]),
    "pickle": (raw(b"\x80\x04K\x01.", "a.jsonl"), 65, ["a Python pickle"]),
    "truncated Parquet": (parquet_cut_off, 65, ["not a readable Parquet file", "again"]),
    "no Parquet at all": (
        raw(b"<html>404</html>", "a.parquet"),
        65,
        ["is an HTML page, saved in place of"],
    ),
    "other bytes named Parquet": (raw(b"prompt", "a.parquet"), 65, ["does not begin with PAR1"]),
    "damaged Arrow": (raw(b"ARROW1 and more", "a.arrow"), 65, ["not a readable Arrow file"]),
    "CSV with a field too many": (raw(b"prompt,chosen,rejected\nq,a,b,c\n", "a.csv"), 65, ["more fields", "line 2:"]),
    "CSV with a field too few": (raw(b"prompt,chosen,rejected\nq,a\n", "a.csv"), 65, ["`rejected` is null", "line 2:"]),
    "CSV with a column twice": (
        raw(b"prompt,chosen,chosen\nq,a,b\n", "a.csv"),
        65,
        ['the column "chosen" occurs twice'],
    ),
    "CSV with an open quote": (raw(b'prompt,chosen,rejected\nq,"a,b\n', "a.csv"), 65, ["not CSV"]),
    "unknown extension": (raw(b"x", "a.docx"), 65, ["unknown extension '.docx'", ".jsonl"]),
    "a folder without data": (empty_folder, 65, ["is a folder without data files", ".parquet"]),
    "a named pipe that nobody writes to": (pipe, 66, ["nobody writes to the pipe", "a.jsonl"]),
    "a symlink loop": (link, 66, ["symbolic link", "circle"]),
    "a missing file": (lambda folder: str(folder / "a.jsonl"), 66, ["there is no file"]),
    "a missing file by its bare name": (
        lambda folder: "no-such-file-here.jsonl",
        66,
        ["there is no file no-such-file"],
    ),
    # ---- the hub
    "no network": (lambda folder: "nobody/has-this-dataset", 69, ["cannot be reached", "--data PATH"]),
    "no hub name": (lambda folder: "a/b/c d", 69, ["a/b/c d", "--data PATH"]),
}


def told(error: QdpoError) -> str:
    """What an error says, the cells of a table of faults as sentences."""
    lines = [error.message, str(error.hint)]
    for report in error.reports if isinstance(error, FaultyRows) else []:
        for reason, left in report.left_out.items():
            assert left.fix
            lines.append(f"{report.named(left.first_rows, left.count)}: {reason}: {left.example}")
            assert "".join(left.example.split()) in "".join(str(error).split())
    return "\n".join(lines)


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_dataset(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("qdpo.data.files.pipes.WRITER", 0.2)
    write, code, parts = FAULTS[name]
    config = DataSection(name=write(tmp_path), template="zephyr", max_length=40, max_prompt_length=20)
    with pytest.raises(QdpoError) as caught:
        prepare(config, byte_level(), 1)
    said = told(caught.value)
    assert caught.value.exit_code == code, said
    for part in parts:
        assert part in said, said
    assert len(str(caught.value)) < 2000, "a message is not a dump of the data"


def test_there_are_enough():
    assert len(FAULTS) >= 45


HUB = {
    "wrong name": (
        datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub"),
        69,
        "check the name",
    ),
    "gated": (datasets.exceptions.DatasetNotFoundError("'a/b' is a gated dataset on the Hub"), 69, "accept its terms"),
    "connection lost": (ConnectionError("Connection reset"), 69, "Connection reset"),
    "own script": (RuntimeError("Dataset scripts are no longer supported, but found b.py"), 69, "own script"),
    "wrong split": (ValueError('Unknown split "train".'), 65, "data.split"),
    "damaged files": (datasets.exceptions.DatasetGenerationError("An error occurred"), 65, "cannot be read"),
}


@pytest.mark.parametrize("name", HUB)
def test_faulty_hub_dataset(name: str, monkeypatch: pytest.MonkeyPatch):
    error, code, part = HUB[name]

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(QdpoError) as caught:
        prepare(DataSection(name="a/b", template="zephyr"), byte_level(), 1)
    assert caught.value.exit_code == code
    assert part in f"{caught.value.message} {caught.value.hint}"


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = raw(lines(GOOD))(tmp_path)

    def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # the superuser may read everything
    with pytest.raises(QdpoError, match="cannot be read: Permission denied") as caught:
        prepare(DataSection(name=path, template="zephyr"), byte_level(), 1)
    assert caught.value.exit_code == 66


HARMLESS: dict[str, Write] = {
    "BOM": raw(b"\xef\xbb\xbf" + lines(GOOD)),
    "CRLF": raw(lines(GOOD).replace(b"\n", b"\r\n")),
    "gzip": raw(gzip.compress(lines(GOOD)), "a.jsonl.gz"),
    "NUL": changed("chosen", "a\x00b"),
    "emoji": changed("chosen", "🙂\U0001f9d1\u200d\U0001f680"),
    "direction marks": changed("prompt", "\u202eabc\u202c"),
    "long prompt": changed("prompt", "word " * 500),
    "long answer": changed("chosen", "word " * 500),
    "extra columns": jsonl([row | {"id": i, "meta": {"a": [1]}} for i, row in enumerate(GOOD)]),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_odd_but_usable_keeps_every_row(name: str, tmp_path: Path):
    config = DataSection(name=HARMLESS[name](tmp_path), template="zephyr", max_length=120, max_prompt_length=80)
    data = prepare(config, byte_level(), 1)
    assert len(data.train) + len(data.heldout) == 40
    if name.startswith("long"):
        cut = [
            sum(report.cut[kind] for kind in ("prompt", "chosen"))
            for report in (data.train_report, data.heldout_report)
        ]
        assert sum(cut) == 2


def test_bad_rows_are_dropped_when_asked_and_counted(tmp_path: Path):
    rows = [row | {"chosen": ""} if i in (3, 5) else row for i, row in enumerate(GOOD)]
    path = raw(lines(rows[:7]) + b"{broken\n" + lines(rows[7:]))(tmp_path)
    data = prepare(DataSection(name=path, template="zephyr", on_bad_row="drop"), byte_level(), 1)
    assert len(data.train) + len(data.heldout) == 38
    left = {reason: (out.count, out.first_rows) for reason, out in data.train_report.left_out.items()}
    assert left == {"`chosen` is empty": (2, [4, 6]), "the line is not JSON": (1, [8])}


def test_over_long_pairs_are_left_out_without_asking_and_counted(tmp_path: Path):
    rows = [r | {s: "same " * 60 + s for s in ("chosen", "rejected")} if i == 4 else r for i, r in enumerate(GOOD)]
    config = DataSection(name=jsonl(rows)(tmp_path), template="zephyr", max_length=40, max_prompt_length=20)
    data = prepare(config, byte_level(), 1)
    ((reason, left),) = data.train_report.left_out.items()
    assert reason == "chosen and rejected are identical after cutting to max_length"
    assert (left.count, left.first_rows, left.inherent) == (1, [5], True)
