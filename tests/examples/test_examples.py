"""The scripts of examples/ do what they say, in miniature, and stay short."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import datasets
import pytest
from parity.trl_cpu import install_torch_head
from training.tiny import Tiny, make_rows

FOLDER = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))


def load(name: str) -> ModuleType:
    """A script as a module; nothing runs yet."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_four_of_at_most_40_lines() -> None:
    assert SCRIPTS == ["accelerate_trl", "own_data", "sweep_beta", "train_evaluate_export"]
    for name in SCRIPTS:
        assert len((FOLDER / f"{name}.py").read_text().splitlines()) <= 40, name


def test_own_data(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = load("own_data").main(tmp_path, str(tiny.preset), steps=2)
    assert (run.state, run.path) == ("finished", tmp_path / "sums")
    assert "380 pairs of 400 rows" in capsys.readouterr().out


def test_train_evaluate_export(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = load("train_evaluate_export").main
    export = main(tmp_path / "run", str(tiny.preset), steps=2)
    assert (export.path / "verify.json").is_file()
    before = (tmp_path / "run" / "run.json").stat().st_mtime_ns
    main(tmp_path / "run", str(tiny.preset), steps=2)
    assert (tmp_path / "run" / "run.json").stat().st_mtime_ns == before
    assert "scored 12 held-out pairs" in capsys.readouterr().out


def test_sweep_beta(tiny: Tiny, tmp_path: Path) -> None:
    results = load("sweep_beta").main(tmp_path, str(tiny.preset), (0.1, 0.3), steps=2)
    assert set(results) == {0.1, 0.3}
    assert {path.name for path in tmp_path.iterdir()} == {"beta-0.1", "beta-0.3"}


def test_accelerate_trl(tiny: Tiny, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(make_rows(8, seed=3))
    small = {"use_cpu": True, "bf16": False, "report_to": "none", "per_device_train_batch_size": 2}
    with install_torch_head():
        trainer = load("accelerate_trl").main(str(tiny.model), rows, tmp_path, save_strategy="no", **small)
    assert trainer.state.global_step == 20
