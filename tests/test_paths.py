"""Where qdpo keeps what runs share."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdpo.paths import cache_folder


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
