"""Rows of every published shape, damaged: each becomes a pair or a counted fault, never a traceback."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data.schemas.published import ONE_ROW, SEVERAL_ROWS
from data.schemas.test_published import rows_of

JUNK: list[Any] = [None, "", " ", "text", 0, -1.5, True, [], {}, ["a"], [None], [[]], [{}], {"a": 1}, {"role": "user"}]
JUNK += [
    [{"role": "user"}],
    [{"role": "user", "content": None}],
    [{"role": [], "content": "a"}],
    "[{'role': 'user'",
    [[1, 2]],
]
JUNK += [
    '[{"role": "user", "content": 3}]',
    {"role": "assistant", "content": {"text": "x"}},
    [{"from": None, "value": "a"}],
]


def damaged(value: Any) -> Iterator[Any]:
    """The value with one thing in it replaced or left out, at every depth."""
    yield from JUNK
    if isinstance(value, dict):
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
            for inner in damaged(value[key]):
                yield {**value, key: inner}
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield [*value[:place], *value[place + 1 :]]
            for inner in damaged(item):
                yield [*value[:place], inner, *value[place + 1 :]]


@pytest.mark.parametrize("name", [*ONE_ROW, *SEVERAL_ROWS])
def test_damaged_rows_are_pairs_or_faults(name: str, tmp_path: Path):
    format, found = (ONE_ROW | SEVERAL_ROWS)[name]
    whole = found if isinstance(found, list) else [found]
    bad = [row for row in damaged(whole[-1]) if isinstance(row, dict) and row]
    good = [copy.deepcopy(row) for _ in range(12) for row in whole]
    _, pairs, report = rows_of(tmp_path / "a.jsonl", [*good, *bad], format=format)
    left = sum(entry.count for entry in report.left_out.values())
    assert len(pairs) + left == report.rows_read
    assert len(pairs) >= 1
    assert left
    assert all(entry.fix for entry in report.left_out.values())
