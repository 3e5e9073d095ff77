"""What a run keeps for its exports when it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from training.tiny import Tiny, train_tiny

from qdpo.errors import UnavailableError
from qdpo.export import moments
from qdpo.model.moments import MOMENTS, Moments
from qdpo.training.stages import moments as stage


def test_a_run_keeps_moments_of_a_share_of_what_it_was_trained_on(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage, "FEWEST", 16)
    run = train_tiny(tiny, tmp_path / "run")
    kept = Moments(tmp_path / "run" / MOMENTS)
    assert kept.about.adapter_sha256 == run.record["result"]["adapter_sha256"]
    share = run.record["result"]["tokens"] // stage.SHARE
    assert share // 2 <= kept.about.tokens <= share + 64, "every plain text has two tokens at the least"
    assert "exports keep what was trained" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    "error",
    [UnavailableError("no row of layers"), RuntimeError("out of memory, DefaultCPUAllocator: can't allocate memory")],
)
def test_a_run_is_finished_though_they_cannot_be_taken(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fails(*args: object) -> None:
        raise error

    monkeypatch.setattr(moments, "take_moments", fails)
    run = train_tiny(tiny, tmp_path / "run")
    assert run.record["state"] == "finished"
    assert "no moments of the layers' inputs are kept" in capsys.readouterr().err.replace("\n", " ")
