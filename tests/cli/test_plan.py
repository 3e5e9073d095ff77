"""`qdpo plan` as a command: quick, without torch, and every figure of it in JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training.tiny import Tiny

from qdpo.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = main(["plan", *args])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_shipped_preset_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--preset", "garrulus-t4")
    assert code == 0
    for word in ("NF4 weights", "LoRA weights", "gradients", "activations", "CUDA context", "needed", "verdict"):
        assert word in out
    assert "fits with" in out
    assert "200 steps" in out
    assert "q4_k_m 4.37 GB" in out


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--preset", "zephyr-7b-qlora", "--gpu", "rtx4090", "--json")
    plan = json.loads(out)
    assert code == 0
    memory = plan["memory"]
    assert sum(memory["parts"].values()) == pytest.approx(memory["peak"], rel=0.01)
    assert memory["peak"] == max(memory["phases"].values()) == memory["phases"][memory["when"]]
    assert memory["total"] == pytest.approx(memory["peak"] + memory["context"] + memory["slack"])
    passes = {"reference", "evaluation", "forward", "backward", "samples"}
    assert set(memory["phases"]) == {"load", *passes, "step"}
    assert set(plan["host_memory"]) == {"loading", "export", "verify"}
    assert plan["time"]["seconds"] > 0
    assert plan["disk"]["gguf"]["f16"] == pytest.approx(plan["disk"]["merged"], rel=0.02)
    assert plan["verdict"]["kind"] == "fits"


def test_what_does_not_fit_names_a_knob(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "--preset", "zephyr-7b-qlora", "--gpu", "9")
    assert "turn first  --set " in out


def test_auto_says_what_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--preset", "garrulus-a40", "--auto", "--gpu", "a40")
    assert code == 0
    assert err.count("note: ") >= 2
    assert "packing.tokens_per_micro_batch=" in err
    assert "the fastest of" in err
    assert "fits with" in out


def test_auto_gives_back_to_the_run_what_was_set(capsys: pytest.CaptureFixture[str]) -> None:
    set_by_hand = ("train.optim=adamw_8bit", "packing.checkpoint_layers=3", "train.gradient_checkpointing=false")
    options = [part for setting in set_by_hand for part in ("--set", setting)]
    code, _, err = run(capsys, "--preset", "garrulus-a40", "--auto", "--gpu", "a40", *options)
    assert code == 0
    for setting in ("train.optim=auto", "packing.checkpoint_layers=auto", "train.gradient_checkpointing=true"):
        assert f"note: {setting}: " in err


def test_real_lengths_of_local_data(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--preset", str(tiny.preset), "--json")
    plan = json.loads(out)
    assert code == 0
    assert plan["lengths"]["real"]
    assert plan["lengths"]["rows"] == 44
    assert plan["base"]["found"] == "local config.json"
    assert plan["card"]["name"].startswith("CPU")


def test_calibrate_measures_within_ten_percent(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--preset", "quickstart", "--calibrate", "--json", "--set", "train.pairs_per_step=64")
    found = json.loads(out)
    assert code == 0
    assert found["pairs"] == 64
    assert abs(found["error"]) <= 0.10
    assert found["loaded_estimate"] == pytest.approx(found["loaded"], rel=0.05)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ([], 64, "which preset"),
        (["--preset", "garrulus-t5"], 78, "there is no preset"),
        (["--preset", "quickstart", "--gpu", "voodoo"], 64, "no such card"),
        (["--preset", "quickstart", "--model", "/nowhere"], 66, "/nowhere"),
        (["--preset", "quickstart", "--calibrate", "--gpu", "t4"], 64, "leave --gpu out"),
    ],
)
def test_mistakes(args: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    found, _, err = run(capsys, *args)
    assert found == code
    assert words in err


def test_made_again_it_takes_neither_torch_nor_three_seconds() -> None:
    script = (
        "import sys; from qdpo.cli.main import main; "
        "code = main(['plan', '--preset', 'zephyr-7b-gemma', '--gpu', 't4']); "
        "sys.exit(code or sum(name in sys.modules for name in ('torch', 'transformers', 'datasets')))"
    )
    env = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT))}

    def made() -> tuple[int, str, float]:
        before = os.times()
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=300)
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        return done.returncode, done.stdout, used

    made()
    code, text, used = made()
    assert (code, "verdict" in text) == (0, True)
    assert used < 3  # processor time: a busy machine does not change it


def test_a_hub_model_offline_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "--preset", "quickstart", "--model", "nobody/nothing")
    assert code == 69
    assert "config.json of nobody/nothing is not in the local cache" in err


def test_a_dry_run_shows_the_plan_and_auto_its_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["train", "--preset", "quickstart", "--auto", "--dry-run", "--run-dir", str(tmp_path / "run")])
    out, err = capsys.readouterr()
    assert code == 0
    assert "memory         " in err
    assert "fits with" in err
    assert "note: packing.tokens_per_micro_batch=" in err
    assert "tokens_without_grad: 32768  # --set" in out


def test_auto_is_for_a_new_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", "--auto", "--run-dir", str(tmp_path)]) == 64
    assert "--auto is for a new run" in capsys.readouterr().err
