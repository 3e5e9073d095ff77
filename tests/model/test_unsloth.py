"""`backend: unsloth`: when it is imported, what it refuses, and a real run where unsloth is installed."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training.tiny import Tiny, TinyRun, read_run, resolve_tiny, train_tiny

from qdpo.cli.main import main
from qdpo.errors import ConfigError, UnavailableError
from qdpo.hardware import find_device
from qdpo.model import unsloth

ROOT = Path(__file__).resolve().parents[2]
UNSLOTH = "backend=unsloth"
# Two evaluations, and a checkpoint before the last step; unsloth takes the fused AdamW on a CPU.
SHORT = ("train.max_steps=4", "train.eval_every=2", "train.save_every=2", "train.optim=adamw_torch")

FAKE = """
import json, os, sys
early = [name for name in ("transformers", "trl", "peft") if name in sys.modules]
switches = {name: value for name, value in os.environ.items() if name.startswith("UNSLOTH_")}
with open(os.environ["SEEN"], "w") as stream:
    json.dump({"early": early, "switches": switches}, stream)
raise NotImplementedError("you need another machine\\nand more")
"""

NO_NETWORK = """
import socket, sys
def refuse(*args, **kwargs):
    print("NETWORK", args, file=sys.stderr)
    raise OSError("no network in this test")
socket.getaddrinfo = socket.create_connection = refuse
for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, refuse)
from qdpo.cli.main import main
sys.exit(main())
"""


def train_outside(folder: Path, tiny: Tiny, *overrides: str, path: Path | None = None) -> Any:
    """`qdpo train` in a process of its own, in an empty folder, with the network refused and reported."""
    work = folder / "work"
    work.mkdir(exist_ok=True)
    sets = [word for override in overrides for word in ("--set", override)]
    # the checkout comes second, for tests that run without installation
    places = [str(part) for part in (path, ROOT, os.environ.get("PYTHONPATH")) if part is not None]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "SEEN": str(folder / "seen.json")}
    # what qdpo switches off must not be off because the tests are offline
    env = {name: value for name, value in env.items() if name != "HF_HUB_OFFLINE" and "UNSLOTH" not in name}
    again = ["--resume"] if (folder / "run").exists() else ["--preset", str(tiny.preset), *sets]
    command = [sys.executable, "-c", NO_NETWORK, "train", *again, "--run-dir", str(folder / "run")]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, cwd=work)


# ------------------------------------------------------------------------------------------------------ without unsloth


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A folder with a module `unsloth` that writes down what was imported before it, and cannot run here."""
    package = tmp_path / "fake" / "unsloth"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE)
    return package.parent


def test_is_imported_before_what_it_changes(tiny: Tiny, tmp_path: Path, fake: Path) -> None:
    result = train_outside(tmp_path, tiny, UNSLOTH, path=fake)
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["early"] == []
    assert seen["switches"].items() >= unsloth.QUIET.items()
    assert Path(seen["switches"]["UNSLOTH_COMPILE_LOCATION"]).is_relative_to(os.environ["QDPO_CACHE"])
    # and what it raises is explained
    assert result.returncode == UnavailableError.exit_code, result.stderr
    assert "cannot be imported here: you need another machine" in result.stderr
    assert "pip install 'qdpo[unsloth]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "run.json").exists()


def test_is_not_imported_unless_chosen(tiny: Tiny, tmp_path: Path, fake: Path) -> None:
    # stops when transformers and TRL are imported, before anything is loaded: TRL ignores label smoothing
    result = train_outside(tmp_path, tiny, "engine=trl", "loss.label_smoothing=0.1", path=fake)
    assert result.returncode in (UnavailableError.exit_code, ConfigError.exit_code), result.stderr
    assert "engine: trl" in result.stderr or "TRL ignores" in result.stderr
    assert not (tmp_path / "seen.json").exists()


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    """unsloth looks installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))


def test_comes_too_late_beside_transformers(tiny: Tiny, found: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    assert transformers.__name__ in sys.modules
    monkeypatch.delitem(sys.modules, "unsloth", raising=False)
    with pytest.raises(UnavailableError, match="before transformers, which this process has imported already"):
        unsloth.start(resolve_tiny(tiny, UNSLOTH).config)


def test_says_how_to_install_it(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="unsloth is not installed") as caught:
        train_tiny(tiny, tmp_path / "run", UNSLOTH)
    assert caught.value.hint is not None
    assert "pip install 'qdpo[unsloth]'" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_so_too(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["train", "--preset", str(tiny.preset), "--set", UNSLOTH, "--dry-run"]) == UnavailableError.exit_code


@pytest.mark.parametrize(
    ("override", "reason"),
    [("model.adapter=adapter", "names one to continue from"), ("model.double_quant=false", "which unsloth ignores")],
)
def test_refuses_what_unsloth_would_ignore(override: str, reason: str, tiny: Tiny, found: None) -> None:
    with pytest.raises(ConfigError, match=reason):
        unsloth.check(resolve_tiny(tiny, UNSLOTH, override).config)


def test_offloads_under_trl_only(tiny: Tiny) -> None:
    def chosen(*overrides: str) -> str | bool:
        return unsloth.checkpointing(resolve_tiny(tiny, *overrides).config)

    assert chosen("engine=trl") == "unsloth"
    assert chosen("engine=packed") is False
    assert chosen("engine=trl", "train.gradient_checkpointing=false") is False


# --------------------------------------------------------------------------------------------------------- with unsloth


def missing() -> str:
    """Why unsloth cannot run here, as far as can be known without importing it; empty where it can."""
    if importlib.util.find_spec("unsloth") is None:
        return "unsloth is not installed (docs/backends.md says how, also for a CPU)"
    version = tuple(map(int, unsloth.installed_version().split(".")))
    if version < (2026, 10, 9) and find_device().kind == "cpu":
        return f"unsloth {unsloth.installed_version()} needs a GPU"
    return ""


real = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def plain(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """The same run without unsloth."""
    return train_tiny(tiny, tmp_path_factory.mktemp("hf") / "run", *SHORT)


@pytest.fixture(scope="module")
def under_trl(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run of unsloth with TRL's trainer."""
    return train_real(tiny, tmp_path_factory.mktemp("unsloth-trl"), *SHORT, "engine=trl")


@pytest.fixture(scope="module")
def packed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run of unsloth with the packed engine."""
    return train_real(tiny, tmp_path_factory.mktemp("unsloth-packed"), *SHORT)


def train_real(tiny: Tiny, folder: Path, *overrides: str) -> TinyRun:
    """Train or continue with the real unsloth, which must not look for the network."""
    result = train_outside(folder, tiny, UNSLOTH, *overrides)
    assert result.returncode == 0, result.stderr
    assert "NETWORK" not in result.stderr
    # nothing lands where the user works
    assert not any((folder / "work").iterdir())
    return read_run(folder / "run")


def assert_like(run: TinyRun, plain: TinyRun) -> None:
    """The same numbers and the same files as without unsloth; on a CPU it changes no mathematics."""
    assert run.record["backend"]["name"] == "unsloth"
    assert run.record["state"] == "finished"
    assert run.losses == pytest.approx(plain.losses, abs=1e-4)
    assert run.adapter.keys() == plain.adapter.keys()
    for name, weight in plain.adapter.items():
        assert run.adapter[name].dtype == weight.dtype
        assert (run.adapter[name] - weight).abs().max() < 1e-4
    configs = [json.loads((r.folder / "adapter" / "adapter_config.json").read_text()) for r in (run, plain)]
    for key in ("r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "base_model_name_or_path"):
        assert configs[0][key] == configs[1][key]
    assert sorted(configs[0]["target_modules"]) == sorted(configs[1]["target_modules"])
    assert run.record["quantization"] == plain.record["quantization"]
    assert run.record["data"] == plain.record["data"]
    checks = {check["name"] for check in run.record["checks"]}
    assert checks >= {check["name"] for check in plain.record["checks"] if not check["name"].startswith("engine")}
    saved = sorted(path.name for path in (plain.folder / "checkpoints").iterdir())
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == saved


@real
def test_trains_with_trl(under_trl: TinyRun, plain: TinyRun) -> None:
    assert_like(under_trl, plain)
    assert under_trl.record["engine"]["way"] == "trl"


@real
@pytest.mark.slow
def test_trains_packed_where_the_probe_allows_it(packed: TinyRun, plain: TinyRun) -> None:
    assert_like(packed, plain)
    assert packed.record["engine"]["way"] == "packed"


@real
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["under_trl", "packed"])
def test_resumes(engine: str, tiny: Tiny, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    whole: TinyRun = request.getfixturevalue(engine)
    shutil.copytree(whole.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000004")
    shutil.rmtree(tmp_path / "run" / "adapter")
    resumed = train_real(tiny, tmp_path)
    assert resumed.sha256 == whole.sha256


@real
@pytest.mark.slow
def test_is_exported_and_verified_without_unsloth(packed: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    run = ["--run", str(packed.folder)]
    assert main(["merge-export", *run, "--format", "safetensors", "--out", str(out)]) == 0
    assert main(["verify", str(out), *run]) == 0
    assert "unsloth" not in sys.modules
