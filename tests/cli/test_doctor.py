"""`qdpo doctor`: the real report on this machine, and what it says when something is broken."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import qdpo
from qdpo import cuda
from qdpo.cli import doctor

ROOT = Path(qdpo.__file__).parents[1]

HEALTHY: dict[str, Any] = {
    "device": {"kind": "cuda", "name": "Example GPU", "capability": [7, 5], "memory_bytes": 16 << 30},
    "cuda": {"summary": "driver 580.65.06, which runs CUDA up to 13.0", "absence": None},
    "dtype": {"compute": "float16", "reason": "compute capability 7.5 has no bfloat16"},
    "nf4": {"ok": True, "detail": "9.3% off the exact product"},
    "telemetry": {"qdpo": "none", "trl_and_hub": "off"},
    "problems": [],
}


def child(code: int, stdout: str = "", stderr: str = "") -> Any:
    def run(*args: Any, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], code, stdout, stderr)

    return run


def run_doctor(as_json: bool = False) -> int:
    return doctor.run(argparse.Namespace(json=as_json))


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", child(0, "noise of a library\n" + json.dumps(HEALTHY)))


def test_this_machine() -> None:
    """The whole way: a child that quantizes, multiplies and differentiates with bitsandbytes."""
    result = subprocess.run(
        [sys.executable, "-m", "qdpo", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["ok"]
    assert report["problems"] == []
    assert report["nf4"]["ok"]
    assert "off the exact product" in report["nf4"]["detail"]
    assert report["cuda"]["torch"].startswith("2.")
    assert (report["cuda"]["absence"] is None) == report["cuda"]["usable"]
    assert report["dtype"]["compute"] in ("bfloat16", "float16", "float32")
    assert report["telemetry"] == {"qdpo": "none", "trl_and_hub": "off"}
    assert report["versions"]["torch"].startswith("2.")
    assert report["disk"]["free_bytes"] > 0


@pytest.mark.usefixtures("healthy")
def test_report_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_doctor() == 0
    shown = capsys.readouterr().out
    assert "cuda: Example GPU, compute capability 7.5, 16.0 GiB" in shown
    assert "float16: compute capability 7.5 has no bfloat16" in shown
    assert "driver 580.65.06, which runs CUDA up to 13.0" in shown
    assert "--allow-cpu" not in shown
    assert "works: 9.3% off" in shown
    assert "everything that training needs is here" in shown
    for part in doctor.OPTIONAL:
        assert part.module in shown


def test_without_a_gpu_the_reason_is_in_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = {**HEALTHY, "cuda": {"summary": "no NVIDIA driver", "absence": "CUDA_VISIBLE_DEVICES hides every GPU"}}
    monkeypatch.setattr(subprocess, "run", child(0, json.dumps(absent)))
    assert run_doctor() == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "none: CUDA_VISIBLE_DEVICES hides every GPU; presets that are made for one need --allow-cpu here" in shown


def test_what_does_not_fit_together_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the child, with a machine made up: a build of torch without CUDA beside a card."""
    stack = cuda.Stack(False, "2.13.0+cpu", None, "580.65.06", (13, 0), 1, None, None, (), ((13, 0),), None)
    monkeypatch.setattr(cuda, "look", lambda: stack)
    doctor.probe()
    printed = capsys.readouterr().out
    monkeypatch.setattr(subprocess, "run", child(0, printed))
    assert run_doctor() == 69
    said = capsys.readouterr()
    assert "error: torch 2.13.0+cpu is a build without CUDA, beside NVIDIA driver 580.65.06" in said.err
    assert "hint: install the build of torch" in said.err
    assert "everything that training needs is here" not in said.out


@pytest.mark.parametrize(
    ("code", "stderr", "reason"),
    [(-4, "", "killed by SIGILL"), (1, "Traceback\nImportError: libcudart.so", "ImportError: libcudart.so")],
)
def test_broken_native_code_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int, stderr: str, reason: str
) -> None:
    monkeypatch.setattr(subprocess, "run", child(code, stderr=stderr))
    assert run_doctor(as_json=True) == 69
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert reason in report["problems"][0]["message"]
    assert report["problems"][0]["hint"]


def test_no_answer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise subprocess.TimeoutExpired("python", 1)

    monkeypatch.setattr(subprocess, "run", never)
    assert "no answer" in doctor.examine()["problems"][0]["message"]
    assert run_doctor() == 69


def test_missing_package(monkeypatch: pytest.MonkeyPatch, healthy: None) -> None:
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "peft" else real(name))
    report = doctor.examine()
    assert report["problems"][0]["message"] == "not installed: peft"
    assert report["versions"]["peft"] is None
    assert run_doctor() == 69


def test_version_outside_the_declared_bounds(monkeypatch: pytest.MonkeyPatch, healthy: None) -> None:
    declared = ["rich<1", "pyyaml>=1", "wandb>=99; extra == 'wandb'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: declared)
    (problem,) = doctor.examine()["problems"]
    assert problem["message"].startswith("wrong version: rich ")
    assert "<1" in problem["message"]


@pytest.mark.usefixtures("healthy")
def test_optional_parts_are_not_imported() -> None:
    before = set(sys.modules)
    report = doctor.examine()
    assert not {part.module for part in doctor.OPTIONAL} & (set(sys.modules) - before)
    present = {part["module"]: part["present"] for part in report["optional"]}
    assert present["pytest"]


def test_extras_exist() -> None:
    """Every extra that the report recommends is declared, and every declared one is recommended."""
    with (Path(__file__).resolve().parents[2] / "pyproject.toml").open("rb") as stream:
        declared = set(tomllib.load(stream)["project"]["optional-dependencies"])
    named = {p.install.split("[")[1].split("]")[0] for p in doctor.OPTIONAL if "qdpo[" in p.install}
    assert named <= declared


def test_home_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert doctor._short(doctor._hub_cache()) == "~/.cache/huggingface/hub"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "models"))
    assert doctor._short(doctor._hub_cache()) == "~/models/hub"
