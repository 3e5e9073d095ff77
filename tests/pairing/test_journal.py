"""A file of lines that grows, is killed, and is opened again."""

from __future__ import annotations

from pathlib import Path

import pytest
from pairing.polls import rows_of

from qdpo.errors import BusyError, DataError, OutputError
from qdpo.pairing.journal import Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines.jsonl"


def test_wherever_it_was_cut_whole_lines_stay(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal.opened(path) as journal:
        journal.append([{"n": 1}, {"n": "ä"}])
        journal.append([{"n": 3}])
    whole = path.read_bytes()
    for size in range(1, len(whole) + 1):
        path.write_bytes(whole[:size])
        with Journal.opened(path) as journal:
            found = len(journal.rows)
            assert path.read_bytes() == whole[:size]  # nothing is done before there is something to write
            journal.append([{"n": "new"}])
        assert rows_of(path) == [*[{"n": 1}, {"n": "ä"}, {"n": 3}][:found], {"n": "new"}]
        # a line that lacks its end alone is whole
        assert found == whole[:size].count(b"\n") + whole[:size].endswith(b"}")
    assert "the part is cut off" in capsys.readouterr().err


def test_what_is_no_such_file_is_left_alone(path: Path) -> None:
    for content in (
        b"a line of text",
        b"[1, 2]",
        b'{"n": 1}\nhello',
        b'{"n": 1}\n\n{"n": 2}\n',
        b"1\n",
        b"\xff\xfe",
        b"{\n}\n",
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match="repair it, or choose another --out"), Journal.opened(path):
            pass
        assert path.read_bytes() == content


def test_it_is_held_by_one(path: Path) -> None:
    with Journal.opened(path) as journal:
        with pytest.raises(BusyError), Journal.opened(path):
            pass
        journal.append([{"n": 1}])
    with Journal.opened(path) as journal:
        assert journal.rows == [{"n": 1}]


def test_an_empty_one_goes(path: Path) -> None:
    with Journal.opened(path):
        assert path.exists()
    assert not path.exists()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError), Journal.opened(tmp_path / "file" / "lines.jsonl"):
        pass
    with pytest.raises(OutputError), Journal.opened(tmp_path):
        pass
