"""A cache of a test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdpo.model import hashes


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that nobody has written to, and a process that knows no hash yet."""
    monkeypatch.setenv("QDPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "_known", {})
    return tmp_path / "cache"
