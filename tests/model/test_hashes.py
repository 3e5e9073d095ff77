"""The hash of a large file is computed once, and again as soon as the file is another."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qdpo.model import hashes
from qdpo.model.hashes import file_sha256, known_sha256
from qdpo.model.source import Source
from qdpo.model.weights import known_weights_sha256, weights_sha256

ROOT = Path(__file__).resolve().parents[2]
LONG_AGO = 1_600_000_000 * 10**9


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read, one entry each time."""
    seen: list[Path] = []
    real = hashes.sha256_file

    def counted(path: Path, advance: Callable[[int], object]) -> str:
        seen.append(path)
        return real(path, advance)

    monkeypatch.setattr(hashes, "sha256_file", counted)
    return seen


def write(path: Path, content: bytes, changed: int = LONG_AGO) -> Path:
    """A file that was changed at a given time, ns."""
    path.write_bytes(content)
    os.utime(path, ns=(changed, changed))
    return path


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process begins with."""
    monkeypatch.setattr(hashes, "_known", {})


def test_a_file_is_hashed_once_by_all_processes(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a", b"content")
    wanted = hashlib.sha256(b"content").hexdigest()
    assert known_sha256(path) is None
    assert [file_sha256(path), file_sha256(path)] == [wanted, wanted]
    forget(monkeypatch)
    assert known_sha256(path) == wanted
    assert file_sha256(path) == wanted
    assert reads == [path]


def replace_inode(path: Path) -> None:
    """Another file of the same size and time in its place."""
    write(path.with_name("other"), b"CONTENT").replace(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: write(path, b"longer content"),
        lambda path: write(path, b"CONTENT", LONG_AGO + 1),
        replace_inode,
    ],
    ids=["size", "time", "inode"],
)
@pytest.mark.parametrize("other_process", [False, True])
def test_a_changed_file_is_hashed_again(
    change: Callable[[Path], object], other_process: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a", b"content")
    file_sha256(path)
    change(path)
    if other_process:
        forget(monkeypatch)
    assert known_sha256(path) is None
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_link_is_known_as_what_it_leads_to(tmp_path: Path, reads: list[Path]) -> None:
    path = write(tmp_path / "blob", b"content")
    (tmp_path / "link").symlink_to(path)
    assert file_sha256(tmp_path / "link") == file_sha256(path)
    assert len(reads) == 1


def test_what_was_written_just_now_is_not_remembered(tmp_path: Path, reads: list[Path]) -> None:
    path = write(tmp_path / "a", b"content", time.time_ns())
    file_sha256(path)
    file_sha256(path)
    assert len(reads) == 2
    assert not (tmp_path / "cache").exists()


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a", b"content")
    real = hashes.sha256_file

    def changing(path: Path, advance: Callable[[int], object]) -> str:
        digest = real(path, advance)
        write(path, b"CONTENT", LONG_AGO + 7)
        return digest

    monkeypatch.setattr(hashes, "sha256_file", changing)
    file_sha256(path)
    assert known_sha256(path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"mark": 1}'])
def test_a_damaged_entry_is_no_entry(
    content: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a", b"content")
    wanted = file_sha256(path)
    (entry,) = (cache / "hashes").iterdir()
    entry.write_text(content)
    forget(monkeypatch)
    assert known_sha256(path) is None
    assert file_sha256(path) == wanted
    assert json.loads(entry.read_text())["sha256"] == wanted


def test_a_cache_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("QDPO_CACHE", str(tmp_path / "file"))
    path = write(tmp_path / "a", b"content")
    assert file_sha256(path) == hashlib.sha256(b"content").hexdigest()
    assert "the hash of a is not kept for the next run" in " ".join(capsys.readouterr().err.split())


def test_processes_at_the_same_time_do_not_disturb_each_other(tmp_path: Path, cache: Path) -> None:
    files = [write(tmp_path / f"f{i}", bytes([i]) * 1000) for i in range(20)]
    code = (
        "import sys; from pathlib import Path; from qdpo.model.hashes import file_sha256\n"
        "for path in sys.argv[1:]: print(file_sha256(Path(path)))"
    )
    command = [sys.executable, "-c", code, *map(str, files)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for _ in range(3)]
    wanted = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert [process.communicate(timeout=120)[0].split() for process in running] == [wanted] * 3
    assert len(list((cache / "hashes").iterdir())) == len(files)


def test_a_models_hash_is_known_when_all_of_its_files_are(tmp_path: Path) -> None:
    source = Source("toy", tmp_path, None)
    assert known_weights_sha256(source) is None
    for name in ("model-1", "model-2"):
        write(tmp_path / f"{name}.safetensors", name.encode())
    file_sha256(tmp_path / "model-1.safetensors")
    assert known_weights_sha256(source) is None
    whole = weights_sha256(source)
    assert known_weights_sha256(source) == whole
    write(tmp_path / "model-2.safetensors", b"model-X", LONG_AGO + 1)
    assert known_weights_sha256(source) is None
    assert weights_sha256(source) != whole
