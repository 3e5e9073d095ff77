"""JSON that is one object: a whole table, or a single row that only looks like one; and values one after another."""

import json
from pathlib import Path
from typing import Any

import pytest

from qdpo.data.files.json_values import is_cut, table_of
from qdpo.data.files.kinds import look
from qdpo.data.files.sources import find_source
from qdpo.errors import DataError

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SHAREGPT = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
ROW = {"prompt": "q", "chosen": "a", "rejected": "b"}

ROWS: dict[str, Any] = {
    "text": ROW,
    "conversations": {"chosen": TURNS, "rejected": TURNS},
    "conversations and a prompt": {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": TURNS[1:]},
    "ShareGPT": {"conversations": SHAREGPT, "chosen": SHAREGPT[1], "rejected": SHAREGPT[1]},
    "one message a side": {"chosen": TURNS[1], "rejected": TURNS[1]},
    "one conversation": {"messages": TURNS},
    "answers with scores": {"instruction": "q", "completions": [{"response": "a"}, {"response": "b"}]},
    "nothing but answers with scores": {"completions": [{"response": "a"}], "scores": [{"a": 1}]},
    "a conversation with as many tags": {"messages": TURNS, "tags": ["a", "b"]},
    "a conversation with a tag": {"messages": TURNS, "tags": ["a"], "images": [["a"]]},
    "a list of texts alone": {"answers": ["a", "b"]},
    "an error beside an answer": {"prompt": "q", "error": "none"},
    "empty": {},
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_single_row_is_no_table(name: str, indent: int | None, tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS[name], indent=indent))
    source = find_source(str(tmp_path / "a.json"))
    assert list(source.rows()) == [ROWS[name]]
    assert source.read_as == ""


TABLES: dict[str, tuple[Any, list[Any], str]] = {
    "under data": ({"data": [ROW, ROW]}, [ROW, ROW], 'the rows under the key "data"'),
    "with other facts": ({"name": "x", "n": 1, "tags": ["a"], "examples": [ROW]}, [ROW], 'under the key "examples"'),
    "under any key": ({"my pairs": [ROW]}, [ROW], 'the rows under the key "my pairs"'),
    "with other splits": (
        {"train": [ROW], "test": [ROW, ROW]},
        [ROW],
        'the rows under the key "train", not those under "test"',
    ),
    "as many in other splits": ({"train": [ROW], "test": [ROW]}, [ROW], 'not those under "test"'),
    "columns": ({"a": [1, 2], "b": [3, 4]}, [{"a": 1, "b": 3}, {"a": 2, "b": 4}], "columns"),
    "columns of conversations": ({"a": [TURNS], "b": [TURNS]}, [{"a": TURNS, "b": TURNS}], "columns"),
    "columns with messages": (
        {"conversations": [SHAREGPT, SHAREGPT], "chosen": SHAREGPT},
        [{"conversations": SHAREGPT, "chosen": message} for message in SHAREGPT],
        "columns",
    ),
    "columns of texts and messages": (
        {"prompt": ["a", "b"] * 10, "chosen": TURNS * 10},
        [{"prompt": "a", "chosen": TURNS[0]}, {"prompt": "b", "chosen": TURNS[1]}] * 10,
        "columns",
    ),
    "pandas": ({"prompt": {"0": "q", "7": "r"}}, [{"prompt": "q"}, {"prompt": "r"}], "columns of numbered values"),
    "pandas, index": ({"0": ROW, "1": ROW}, [ROW, ROW], "rows by their number"),
    "pandas, split": ({"columns": ["a", "b"], "index": [0], "data": [[1, 2]]}, [{"a": 1, "b": 2}], "split"),
    "pandas, table": ({"schema": {"fields": [{"name": "a"}]}, "data": [{"a": 1}]}, [{"a": 1}], "data"),
    "no rows": ({"data": []}, [], "data"),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("indent", [None, 1])
def test_a_table_is_read_and_said(name: str, indent: int | None, tmp_path: Path):
    value, rows, how = TABLES[name]
    (tmp_path / "a.jsonl").write_text(json.dumps(value, indent=indent) + "\n\n")
    source = find_source(str(tmp_path / "a.jsonl"))
    assert list(source.numbered()) == list(enumerate(rows, 1))
    assert source.unit == "row"
    assert how in source.read_as


def test_a_table_among_lines_is_a_row(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"data": [ROW]}) + "\n" + json.dumps(ROW) + "\n")
    assert list(find_source(str(tmp_path / "a.jsonl")).rows()) == [{"data": [ROW]}, ROW]


def test_what_a_table_cannot_be():
    with pytest.raises(DataError, match=r'several lists of rows: "data" \(1\), "rows" \(2\)'):
        table_of({"data": [ROW], "rows": [ROW, ROW]}, "a.json")
    with pytest.raises(DataError, match='columns of different lengths: "a" 1, "b" 2'):
        table_of({"a": [1], "b": [1, 2]}, "a.json")


def test_a_table_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("qdpo.data.files.json_values.LARGEST_TABLE", 1 << 20)
    (tmp_path / "a.json").write_text(json.dumps({"data": [ROW] * 100_000}))
    with pytest.raises(DataError, match="holds one JSON object: one value is longer than 1 MiB") as caught:
        find_source(str(tmp_path / "a.json"))
    assert "JSON Lines" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("[]", "list"),
        ('\ufeff\n [{"a": 1}]', "list"),
        ('{"a": 1}\n{"a": 2}', "lines"),
        ('{"a": 1}\r\n\r\n{"a": 2}', "lines"),
        ('{"a": 1}', "lines"),
        ('{"a": 1} x\n{"a": 2}', "lines"),
        ('{"a": 1},\n{"a": 2}', "lines"),
        ('{"a": \n{"a": 2}\n', "lines"),
        ('{"a": "x\n{"a": 2}\n', "lines"),
        ('{broken\n{"a": 2}\n', "lines"),
        ('{\n"a": 1}\n{"a": 2}', "values"),
        ('{"a": 1}{"a": 2}', "values"),
        ('{"a": 1}\r{"a": 2}', "values"),
        ('{\n"a": 1}', "values"),
        ('{\n"a": 1}, \n{"a": 2}', "lines"),
        ('{"data": [{"a": 1}]}', "table"),
        ('\n{\n"data": [{"a": 1}]}\n', "table"),
        ('{"data": [{"a": 1}]}\n{}', "lines"),
    ],
)
def test_shapes(text: str, shape: str, tmp_path: Path):
    (tmp_path / "a.json").write_text(text)
    assert look(tmp_path / "a.json").shape == shape


def test_every_beginning_of_a_value_is_known_to_be_cut_off():
    whole = json.dumps({"a": -1.5e-30, "b": [True, None, "é\n"], "c": {"d": False}})
    for end in range(1, len(whole)):
        with pytest.raises(json.JSONDecodeError) as caught:
            json.loads(whole[:end])
        assert is_cut(caught.value), whole[:end]
    for text in ('{"a": nothing}', '{"a": 1} x', "{a: 1}", '{"a": 1,}', '{"a" 1}', '{"a": tru}'):
        with pytest.raises(json.JSONDecodeError) as caught:
            json.loads(text)
        assert not is_cut(caught.value), text


def test_a_damaged_value_says_how_many_came_before(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW, indent=1) * 5 + '{"a": nothing}')
    with pytest.raises(DataError, match="after 5 rows there is what is not JSON") as caught:
        list(find_source(str(tmp_path / "a.jsonl")).rows())
    assert "nothing" in str(caught.value)


def test_the_place_of_damage_in_a_large_list_is_found_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The rest of the file is not read for an end that the damaged item might have."""
    monkeypatch.setattr("qdpo.data.files.json_values.CHUNK", 1000)
    monkeypatch.setattr("qdpo.data.files.json_values.LARGEST_ITEM", 1 << 30)
    good = json.dumps(ROW)
    (tmp_path / "a.json").write_text(f'[{good}, {{"a" 1}}, ' + ", ".join([good] * 10_000) + "]")
    with pytest.raises(DataError, match="after 1 items there is what is not JSON") as caught:
        list(find_source(str(tmp_path / "a.json")).rows())
    assert r"{\"a\" 1}" in str(caught.value)
