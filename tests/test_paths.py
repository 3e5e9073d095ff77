"""Where qdpo keeps what runs share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from qdpo.errors import OutputError, QdpoError
from qdpo.paths import cache_folder, check_file


@pytest.mark.parametrize("part", ["data", "reference", "unsloth"])
def test_every_part_of_the_cache_moves_with_its_variables(
    part: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QDPO_CACHE", str(tmp_path))
    assert cache_folder(part) == tmp_path / part
    monkeypatch.delenv("QDPO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(part) == tmp_path / "qdpo" / part
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder(part) == Path.home() / ".cache" / "qdpo" / part


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (".", "is a folder"),
        ("no/report.json", "there is no folder .*no for report.json"),
        ("data.jsonl/report.json", "there is no folder .*data.jsonl for report.json"),
        ("data.jsonl", "is read, and would be overwritten"),
        ("same.jsonl", "is read, and would be overwritten"),
        ("link.json", "is a link to .*old.json"),
        ("dangling.json", "is a link to"),
        ("pipe", "is no file that could be replaced"),
    ],
)
def test_a_file_is_refused_before_it_is_written(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("{}")
    (tmp_path / "same.jsonl").hardlink_to(tmp_path / "data.jsonl")
    (tmp_path / "link.json").symlink_to(tmp_path / "old.json")
    (tmp_path / "old.json").write_text("{}")
    (tmp_path / "dangling.json").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError, match=says):
        check_file(tmp_path / name, [tmp_path / "data.jsonl", tmp_path / "missing"])
    for sound in ("new.json", "old.json"):
        check_file(tmp_path / sound, [tmp_path / "data.jsonl"])
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc, where not even root may write")
def test_a_folder_that_cannot_be_written_to_is_refused() -> None:
    with pytest.raises(QdpoError, match=r"/proc/report\.json"):
        check_file(Path("/proc/report.json"))
