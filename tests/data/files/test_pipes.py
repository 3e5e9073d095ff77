"""Data through a pipe: read once, kept, and refused where it has no end, no writer, or must be read by a later run."""

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import qdpo
from qdpo.cli.main import main
from qdpo.data.files import pipes
from qdpo.data.files.sources import find_source
from qdpo.errors import DataError, DiskError, InputMissingError

ROWS = [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(40)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()

Pipe = Callable[[Callable[[], Iterator[bytes]]], str]


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    """Makes a named pipe that a thread writes to."""
    threads = []

    def make(content: Callable[[], Iterator[bytes]]) -> str:
        path = tmp_path / "pipe"
        os.mkfifo(path)

        def write() -> None:
            try:
                with path.open("wb", buffering=0) as stream:
                    for chunk in content():
                        stream.write(chunk)
            except BrokenPipeError:
                pass

        threads.append(threading.Thread(target=write, daemon=True))
        threads[0].start()
        return str(path)

    yield make
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_it_is_read_once_and_kept(pipe: Pipe, capsys: pytest.CaptureFixture[str]):
    name = pipe(lambda: iter([LINES[:1000], LINES[1000:]]))
    first = find_source(name)
    assert first.label == name
    assert first.unit == "line"
    assert list(first.rows()) == list(first.rows()) == list(find_source(name).rows()) == ROWS
    assert first.identity() == find_source(name).identity()
    said = " ".join(capsys.readouterr().err.split())
    assert said.count(f"{name} is a pipe: its {len(LINES):,} bytes are kept in a file without a name") == 1


def test_its_kind_is_told_by_what_comes(pipe: Pipe):
    assert list(find_source(pipe(lambda: iter([gzip.compress(LINES)]))).rows()) == ROWS


def test_its_kind_is_told_by_its_name(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.csv")
    threading.Thread(target=lambda: (tmp_path / "pipe.csv").write_text("a name,b\n1,2\n"), daemon=True).start()
    assert list(find_source(str(tmp_path / "pipe.csv")).rows()) == [{"a name": "1", "b": "2"}]


def test_parquet_through_a_pipe(pipe: Pipe, tmp_path: Path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    name = pipe(lambda: iter([(tmp_path / "a.parquet").read_bytes()]))
    assert list(find_source(name).rows()) == list(find_source(name).rows()) == ROWS


def test_damage_is_named_by_the_pipe(pipe: Pipe):
    name = pipe(lambda: iter([b"[", b'{"a": 1}']))
    with pytest.raises(DataError, match=f"{name}: not a JSON list of rows: after 1 items the file ends"):
        list(find_source(name).rows())


@pytest.mark.parametrize("content", [b"\0", b"y\n"])
def test_what_is_no_data_and_has_no_end(content: bytes, pipe: Pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def endless() -> Iterator[bytes]:
        while True:
            yield content * 65536

    (tmp_path / "kept").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "kept"))
    name = pipe(endless)
    with pytest.raises(DataError, match=f"^{name} "):
        find_source(name)
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.parametrize(
    ("bound", "value", "error", "words"),
    [("LARGEST", 1 << 21, DataError, "more than 0 GiB came"), ("LEFT_FREE", 1 << 60, DiskError, "GiB left for what")],
)
def test_data_without_an_end(
    bound: str, value: int, error: type[Exception], words: str, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
):
    def endless() -> Iterator[bytes]:
        while True:
            yield LINES

    monkeypatch.setattr(pipes, bound, value)
    with pytest.raises(error, match=words):
        find_source(pipe(endless))


def test_a_pipe_that_brings_nothing(pipe: Pipe):
    with pytest.raises(DataError, match="nothing came through the pipe"):
        find_source(pipe(lambda: iter([])))


def test_a_pipe_that_nobody_writes_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipes, "WRITER", 0.3)
    os.mkfifo(tmp_path / "pipe")
    started = time.monotonic()
    with pytest.raises(InputMissingError, match="nobody writes to the pipe"):
        find_source(str(tmp_path / "pipe"))
    assert 0.3 <= time.monotonic() - started < 5


def test_a_writer_that_is_slow_and_one_that_is_silent(pipe: Pipe, monkeypatch: pytest.MonkeyPatch):
    def slow() -> Iterator[bytes]:
        yield LINES
        time.sleep(0.6)
        yield LINES

    name = pipe(slow)
    monkeypatch.setattr(pipes, "SILENCE", 0.2)
    with pytest.raises(InputMissingError, match=r"nothing came .* for 0\.2 seconds"):
        find_source(name)
    monkeypatch.setattr(pipes, "SILENCE", 5)
    Path(name).unlink()
    time.sleep(0.6)
    os.mkfifo(name)
    threading.Thread(target=lambda: Path(name).write_bytes(LINES), daemon=True).start()
    assert list(find_source(name).rows()) == ROWS


@pytest.mark.parametrize("setting", ["data.name", "data.eval_name"])
def test_a_run_refuses_a_pipe(setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    os.mkfifo(tmp_path / "pipe")
    run = tmp_path / "run"
    command = ["train", "--preset", "quickstart", "--allow-cpu", "--run-dir", str(run)]
    assert main([*command, "--set", f"{setting}={tmp_path / 'pipe'}"]) == 64
    said = " ".join(capsys.readouterr().err.split())
    assert "is a pipe, and a run reads its data again when it is resumed hint: write it to a file first" in said
    assert not run.exists()


COUNT = """
import sys
from qdpo.data.files.sources import find_source
for name in sys.argv[1:]:
    print(name, len([*find_source(name).rows()]), len([*find_source(name).rows()]))
"""


def test_a_shell_pipes_into_it_and_nothing_is_left(tmp_path: Path):
    (tmp_path / "pairs.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "count.py").write_text(COUNT)
    environment = {**os.environ, "PYTHONPATH": str(Path(qdpo.__file__).parents[1]), "TMPDIR": str(tmp_path)}
    result = subprocess.run(
        ["bash", "-c", f"zcat pairs.gz | {sys.executable} count.py /dev/stdin <(zcat pairs.gz | head -3)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first == "/dev/stdin 40 40"
    assert second.endswith(" 3 3")
    assert result.stderr.count("is a pipe: its") == 2
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.gz", "count.py"}


def test_a_device_is_refused():
    with pytest.raises(DataError, match="/dev/zero is not a file"):
        find_source("/dev/zero")
