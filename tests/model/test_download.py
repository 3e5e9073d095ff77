"""A download is told in one line, by the bytes that the hub's client counts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from faults.fake_hub import Repository, hub

from qdpo import progress
from qdpo.model.download import telling


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BEFORE_FIRST", 0.0)


def test_bytes_are_counted_and_files_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    with telling("owner/model") as bars:
        assert (progress.line() or "").startswith("downloading owner/model: 0 s")
        written, files = bars(desc="x", total=0, unit="B", unit_scale=True), bars(desc="files", total=8)
        written.total += 200_000_000
        written.refresh()
        files.update(3)
        assert "0%, 0.0 of 200.0 MB" in (progress.line() or "")
        written.update(50_000_000)
        assert "25%, 50.0 of 200.0 MB" in (progress.line() or "")
        written.close()
    assert "%|" not in capsys.readouterr().err


def test_the_hubs_client_reports_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, snapshot_download

    content = hashlib.sha256(b"x").digest() * 100_000
    repository = Repository()
    repository.push({"config.json": b"{}", "model.safetensors": content})
    lines = []
    with hub() as here, telling("owner/model") as bars:
        here.models["owner/model"] = repository
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

        class Watched(bars):  # type: ignore[misc, valid-type]
            def update(self, n: float | None = 1) -> bool | None:
                told = super().update(n)
                lines.append(progress.line())
                return told

        snapshot_download("owner/model", endpoint=here.url, cache_dir=tmp_path, tqdm_class=Watched)
    assert any(line and "100%, 3.2 of 3.2 MB" in line for line in lines), lines
