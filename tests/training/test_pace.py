"""On a CPU a run says how long it will take, and does not begin with hours of samples that nobody has asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qdpo import cpu
from qdpo.config.resolve import resolve
from qdpo.data.pairs import TokenPair
from qdpo.hardware import Device
from qdpo.training.stages.pace import say_pace
from qdpo.training.stages.state import RunState

SHAPES = {f"layers.{i}.mlp.up_proj.weight": (7_000, 1_000_000) for i in range(1)}
PAIRS = [TokenPair(i, [1] * 50, [2] * 25, [3] * 26) for i in range(2000)]
DATA: Any = SimpleNamespace(train=PAIRS, heldout=PAIRS[:100], text=[])


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_bf16", lambda: True)
    monkeypatch.setattr(cpu, "layer_flops", lambda: (100e9, 400e9))
    monkeypatch.setattr(cpu, "decoding_seconds", lambda half: 2e-9)


def run_of(*settings: str, kind: str = "cpu") -> tuple[RunState, Any]:
    resolved = resolve("garrulus-a40", ["train.max_steps=100", "train.eval_every=100", *settings])
    return RunState(Path("nowhere"), resolved.config, Device(kind, "x", None, 1 << 34)), resolved


def said_of(run: RunState, resolved: Any, capsys: pytest.CaptureFixture[str], shapes: Any = SHAPES) -> str:
    say_pace(run, resolved, DATA, shapes)
    return capsys.readouterr().err


def test_the_time_is_that_of_the_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    run, resolved = run_of("samples.count=0")
    each = run.config.train.pairs_per_step
    packed = 50 + 24 + 25
    tokens = 4 * 100 * each * packed + 2 * (100 * each + 100 + 3 * 100) * packed
    seconds = 7e9 * tokens / 400e9
    said = said_of(run, resolved, capsys)
    assert "400 GFLOP/s" in said
    assert f"about {int(seconds // 3600)} h" in said
    assert "--resume goes on" in said
    assert "max_steps" in said


def test_float32_is_four_times_as_long(capsys: pytest.CaptureFixture[str]) -> None:
    run, resolved = run_of("samples.count=0", "model.dtype=float32")
    assert "100 GFLOP/s" in said_of(run, resolved, capsys)


def test_samples_that_nobody_asked_for_take_no_more_than_a_tenth(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, resolved = run_of()
    said = said_of(run, resolved, capsys)
    # 4 times 64 tokens of 14 s are an hour; the run takes less than ten
    assert "48 answers of 64 tokens" in said
    assert "samples.count=48 asks for them" in said
    assert run.config.samples.count == 20
    assert 16 <= run.config.samples.max_new_tokens < 64
    monkeypatch.setattr(cpu, "decoding_seconds", lambda half: 2e-8)
    run, resolved = run_of()
    assert "there are none in this run" in said_of(run, resolved, capsys)
    assert run.config.samples.count == 0


def test_samples_that_were_asked_for_stay(capsys: pytest.CaptureFixture[str]) -> None:
    for setting in ("samples.count=48", "samples.max_new_tokens=128", "samples.prompts=[hello]"):
        run, resolved = run_of(setting)
        before = run.config.samples
        assert "asks for them" not in said_of(run, resolved, capsys)
        assert run.config.samples == before


def test_samples_that_take_little_stay(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "decoding_seconds", lambda half: 1e-12)
    run, resolved = run_of()
    assert "asks for them" not in said_of(run, resolved, capsys)
    assert run.config.samples.count == 48


def test_nothing_is_said_of_small_models_and_cards(capsys: pytest.CaptureFixture[str]) -> None:
    assert said_of(*run_of(), capsys, {"layers.0.mlp.up_proj.weight": (1000, 1000)}) == ""
    assert said_of(*run_of(kind="cuda"), capsys) == ""
