"""Two processes (gloo, on the CPU) train what one process trains; only the first one writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training.tiny import Tiny

from qdpo.training.checkpoint import complete_steps

STEPS = ("train.max_steps=6", "train.eval_every=3", "train.save_every=3", "train.log_every=1")


LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone")


def launch(processes: int, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """`torchrun -m qdpo ...`, or plain `python -m qdpo ...` for one process."""
    launcher = [*LAUNCHER, f"--nproc-per-node={processes}"] if processes > 1 else [sys.executable]
    command = [*launcher, "-m", "qdpo", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)


def train(tiny: Tiny, folder: Path, processes: int, *settings: str) -> subprocess.CompletedProcess[str]:
    return launch(processes, *words(tiny, folder, *settings))


def words(tiny: Tiny, folder: Path, *settings: str) -> list[str]:
    """The command line of a training, after `qdpo`."""
    overrides = [text for setting in (*STEPS, *settings) for text in ("--set", setting)]
    return ["train", "--preset", str(tiny.preset), "--run-dir", str(folder), *overrides]


def lines(folder: Path, key: str) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[key] for row in rows if key in row}


@pytest.fixture(scope="module")
def alone(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    done = train(tiny, folder, 1)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def both(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("both") / "run"
    done = train(tiny, folder, 2)
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


def test_losses_and_metrics_are_those_of_one_process(alone: Path, both: tuple[Path, str]) -> None:
    for key in ("loss", "rewards/margins", "entropy", "grad_norm", "eval_loss", "eval_rewards/margins"):
        one, two = lines(alone, key), lines(both[0], key)
        assert one.keys() == two.keys()
        assert two == pytest.approx(one, rel=1e-5, abs=1e-5), key
    adapters = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (alone, both[0])]
    for name, weight in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], weight, rtol=1e-3, atol=1e-5)


def test_the_first_process_writes_and_talks_alone(both: tuple[Path, str]) -> None:
    folder, talk = both
    assert {path.name for path in folder.parent.iterdir()} == {"run"}
    assert len(lines(folder, "loss")) == 6  # one line a step, not one a process
    assert talk.count("run directory:") == 1
    assert json.loads((folder / "run.json").read_text())["state"] == "finished"


def test_a_resumed_run_ends_where_an_undisturbed_one_does(both: tuple[Path, str], tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    whole = train(tiny, folder, 2)
    assert whole.returncode == 0, whole.stderr
    import shutil

    shutil.rmtree(folder / "checkpoints" / "step-000006")
    shutil.rmtree(folder / "adapter")
    again = launch(2, "train", "--run-dir", str(folder), "--resume")
    assert again.returncode == 0, again.stderr
    assert "resuming from step-000003" in again.stderr
    weights = [(place / "adapter" / "adapter_model.safetensors").read_bytes() for place in (folder, both[0])]
    assert weights[0] == weights[1]


def test_a_value_that_is_not_finite_in_one_process_ends_all(tiny: Tiny, tmp_path: Path) -> None:
    """The others do not wait for the sum of gradients until the launcher kills them, and say the same."""
    script = tmp_path / "spoilt.py"
    script.write_text(
        "import dataclasses, sys\n"
        "from qdpo.cli.main import main\n"
        "from qdpo.training import parallel, trainer\n"
        "score = trainer.pair_logps\n"
        "calls = []\n"
        "def spoilt(scores, reference, mean):\n"
        "    if scores.logps.requires_grad and not parallel.is_first():\n"
        "        calls.append(1)\n"
        "        if len(calls) == 4:\n"
        "            scores = dataclasses.replace(scores, logps=scores.logps * float('nan'))\n"
        "    return score(scores, reference, mean)\n"
        "trainer.pair_logps = spoilt\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [*LAUNCHER, "--nproc-per-node=2", str(script), *words(tiny, tmp_path / "run", "train.save_every=1")],
        capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("error: step ") == 2
    assert "log-probabilities" in done.stderr
    assert "exitcode  : 70" in done.stderr
    stopped = max(lines(tmp_path / "run", "loss")) + 1
    assert f"error: step {stopped}: " in done.stderr
    assert complete_steps(tmp_path / "run" / "checkpoints")[-1] == stopped - 1


def test_a_signal_to_the_launcher_saves_and_a_resume_ends_the_same(
    both: tuple[Path, str], tiny: Tiny, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [*LAUNCHER, "--nproc-per-node=2", "-m", "qdpo", *words(tiny, folder)],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 1/"):
            break
    process.send_signal(signal.SIGTERM)
    said = process.stderr.read()
    process.wait(60)
    assert "SIGTERM" in said
    stopped = complete_steps(folder / "checkpoints")[-1]
    assert 1 <= stopped < 6
    again = launch(2, "train", "--run-dir", str(folder), "--resume")
    assert again.returncode == 0, again.stderr
    assert f"resuming from step-{stopped:06d}" in again.stderr
    weights = [(place / "adapter" / "adapter_model.safetensors").read_bytes() for place in (folder, both[0])]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("setting", "message"),
    [("train.pairs_per_step=1", "cannot share 1 pairs per step"), ("engine=trl", "trains in one process")],
)
def test_what_cannot_be_shared_is_refused(setting: str, message: str, tiny: Tiny, tmp_path: Path) -> None:
    done = train(tiny, tmp_path / "run", 2, setting)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback (most recent call last)" not in done.stderr.split("error: ")[0]
