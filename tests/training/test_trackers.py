"""Trackers see every number of metrics.jsonl, change nothing of the run, and go on after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate.tracking
import pytest
from training.tiny import StopAt, Stopped, Tiny, train_tiny, with_callbacks

from qdpo.errors import UnavailableError
from qdpo.training import trackers

SHORT = ("train.max_steps=6", "train.eval_every=3", "train.save_every=2", "samples.count=0")


class Tracker:
    """In place of accelerate's trackers: remembers what it is told."""

    def __init__(self, kept: list[Any], *args: Any, **settings: Any) -> None:
        self.kept = kept
        kept.append(("made", settings.get("id")))

    def start(self) -> None:
        """Nothing to start."""

    def store_init_configuration(self, settings: dict[str, Any]) -> None:
        self.kept.append(("settings", settings))

    def log(self, values: dict[str, float], step: int) -> None:
        self.kept.append((step, values))

    def finish(self) -> None:
        self.kept.append(("finished", None))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    kept: list[Any] = []
    monkeypatch.setattr(trackers, "check_installed", lambda names: None)
    monkeypatch.setattr(accelerate.tracking, "WandBTracker", lambda *args, **settings: Tracker(kept, **settings))
    return kept


def test_a_tracker_is_told_what_the_metrics_say_and_changes_nothing(
    told: list[Any], tiny: Tiny, tmp_path: Path
) -> None:
    plain = train_tiny(tiny, tmp_path / "plain", *SHORT)
    tracked = train_tiny(tiny, tmp_path / "tracked", *SHORT, "train.report_to=[wandb]")
    assert tracked.sha256 == plain.sha256
    assert tracked.measured() == plain.measured()
    assert told[0] == ("made", tracked.record["id"])
    settings = told[1][1]
    assert settings["train.max_steps"] == 6
    assert {type(value) for value in settings.values()} <= {int, float, bool, str}
    assert told[-1] == ("finished", None)
    rows = told[2:-1]
    assert [step for step, _ in rows] == [line["step"] for line in tracked.metrics]
    for (_, values), line in zip(rows, tracked.metrics, strict=True):
        part = "eval" if "eval_loss" in line else "train"
        assert values == {f"{part}/{k.removeprefix('eval_')}": v for k, v in line.items() if k != "step"}


def test_a_resumed_run_goes_on_under_the_same_id(told: list[Any], tiny: Tiny, tmp_path: Path) -> None:
    settings = (*SHORT, "train.report_to=[wandb]")
    with with_callbacks(StopAt(5)), pytest.raises(Stopped):
        train_tiny(tiny, tmp_path / "run", *settings)
    assert told[-1] == ("finished", None), "what was told is not lost with the run"
    run = train_tiny(tiny, tmp_path / "run", *settings, resume=True)
    assert [entry for entry in told if entry[0] == "made"] == [("made", run.record["id"])] * 2


def test_one_that_does_not_start_is_no_defect_of_the_run(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **settings: Any) -> None:
        raise RuntimeError("No API key configured")

    monkeypatch.setattr(trackers, "check_installed", lambda names: None)
    monkeypatch.setattr(accelerate.tracking, "WandBTracker", refuse)
    with pytest.raises(UnavailableError, match=r"train\.report_to: wandb does not start: .*No API key"):
        train_tiny(tiny, tmp_path / "run", *SHORT, "train.report_to=[wandb]")


def test_tensorboard_itself(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train_tiny(tiny, tmp_path / "run", *SHORT, "train.report_to=[tensorboard]")
    (events,) = (run.folder / "tensorboard").glob("events.*")
    found = EventAccumulator(str(events))
    found.Reload()
    losses = [event.value for event in found.Scalars("train/loss")]
    assert losses == pytest.approx(run.losses, rel=1e-6)
