"""A run ends when its held-out pairs have stopped getting better, and a resume takes that end for the end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from training.tiny import Tiny, train_tiny, train_until

from qdpo.training.early_stop import EarlyStop, evaluations_since_best

# The tiny model memorises its 44 pairs, and its held-out loss rises again.
OVERFIT = ("train.learning_rate=2.0e-2", "train.max_steps=60", "train.eval_every=4", "train.save_every=4")
STOP = ("train.early_stop=loss", "train.early_stop_evals=2")


@pytest.mark.parametrize(
    ("values", "lower", "waited"),
    [([], True, 0), ([1.0], True, 0), ([3, 2, 1], True, 0), ([1, 2, 3], True, 2), ([1, 2, 2], False, 1)],
)
def test_evaluations_since_the_best(values: list[float], lower: bool, waited: int) -> None:
    assert evaluations_since_best(values, lower_is_better=lower) == waited


def evaluate(folder: Path, by: Any, values: list[float]) -> bool:
    """Whether a run of 100 steps ends after those evaluations, at steps 0, 10, 20, ..."""
    key = "eval_loss" if by == "loss" else "eval_rewards/accuracies"
    lines = [{"step": 10 * i, key: value} for i, value in enumerate(values)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return EarlyStop(folder / "metrics.jsonl", by, 2).ends(10 * (len(values) - 1), 100)


@pytest.mark.parametrize(
    ("by", "values", "stops"),
    [
        ("loss", [0.69, 0.6, 0.5, 0.51, 0.52], True),
        ("loss", [0.69, 0.6, 0.5, 0.51, 0.49], False),
        ("loss", [0.69, 0.7, 0.71], False),  # the start is no best to fall behind
        ("loss", [0.69, 0.7, 0.71, 0.72], True),
        ("accuracy", [0.0, 0.8, 0.8, 0.8], True),
        ("accuracy", [0.0, 0.7, 0.8, 0.79], False),
        ("accuracy", [0.0, 0.7], False),
    ],
)
def test_when_it_stops(tmp_path: Path, by: str, values: list[float], stops: bool) -> None:
    assert evaluate(tmp_path, by, values) is stops


def test_a_stopped_run_is_known_by_its_metrics(tmp_path: Path) -> None:
    evaluate(tmp_path, "loss", [0.69, 0.5, 0.51, 0.52])
    path = tmp_path / "metrics.jsonl"
    assert EarlyStop(path, "loss", 2).ended(30)
    assert not EarlyStop(path, "loss", 3).ended(30), "more patience goes on"
    assert not EarlyStop(path, "loss", 2).ended(20), "a step before the end"


def test_the_last_step_is_no_early_stop(tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # the last two of three evaluations are no better than the first
    settings = ("train.learning_rate=1e-9", "train.max_steps=6", "train.eval_every=2", "train.early_stop=accuracy")
    run = train_tiny(tiny, tmp_path / "run", *settings, "train.early_stop_evals=2")
    assert run.record["result"]["steps"] == 6
    assert "early stop" not in capfd.readouterr().err


def test_a_real_run_stops_and_keeps_the_best(tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = train_tiny(tiny, tmp_path / "run", *OVERFIT, *STOP, "train.load_best=loss")
    evals = [(int(line["step"]), line["eval_loss"]) for line in run.metrics if "eval_loss" in line]
    last, best = evals[-1][0], min(evals[1:], key=lambda entry: entry[1])[0]
    assert last == best + 8 < 60, evals
    assert run.record["result"]["steps"] == last
    assert run.record["result"]["adapter_step"] == best
    said = capfd.readouterr().err
    assert f"early stop at step {last} of 60" in said
    for step, _ in evals[1:]:
        assert re.search(rf"^(note|warning): step {step}, [a-z -]+: .*\d", said, flags=re.M), "a verdict at each"

    # resumed, the finished run stays as it ended
    again = train_tiny(tiny, tmp_path / "run", *OVERFIT, *STOP, "train.load_best=loss", resume=True)
    assert again.record["result"]["steps"] == last
    assert again.sha256 == run.sha256

    # killed on its way and resumed, it stops at the same step with the same adapter
    killed = tmp_path / "killed"
    train_until(tiny, killed, last - 3, *OVERFIT, *STOP, "train.load_best=loss")
    resumed = train_tiny(tiny, killed, *OVERFIT, *STOP, "train.load_best=loss", resume=True)
    assert resumed.record["result"]["steps"] == last
    assert resumed.sha256 == run.sha256


def test_without_it_the_run_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    run = train_tiny(tiny, tmp_path / "run", *OVERFIT, "train.max_steps=24")
    assert run.record["result"]["steps"] == 24
