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

from qdpo.run.checkpoint import complete_steps

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
        "from qdpo.training import parallel, recipe\n"
        "score = recipe.pair_logps\n"
        "calls = []\n"
        "def spoilt(scores, reference, mean):\n"
        "    if scores.logps.requires_grad and not parallel.is_first():\n"
        "        calls.append(1)\n"
        "        if len(calls) == 4:\n"
        "            scores = dataclasses.replace(scores, logps=scores.logps * float('nan'))\n"
        "    return score(scores, reference, mean)\n"
        "recipe.pair_logps = spoilt\n"
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


AS_ON_TWO_GPUS = """
import os, sys
import accelerate.state
import torch
import torch.distributed as dist
from qdpo.errors import TrainingError
from qdpo.training import parallel
from qdpo.training.metrics import Metrics

# Two cards that torch says are there. In the place of NCCL stands gloo, let in for CUDA tensors only: as with NCCL, a
# CPU tensor has no backend then.
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 2
chosen = []
torch.cuda.set_device = lambda device: chosen.append(torch.device(device).index)
accelerate.state.check_cuda_p2p_ib_support = lambda: True
start = dist.init_process_group

def without_nccl(backend, **settings):
    devices = "cuda:nccl" if backend == "nccl" else backend
    start(devices.replace("nccl", "gloo"), **settings)

dist.init_process_group = without_nccl
if len(sys.argv) > 1:
    parallel.ON_GPUS = sys.argv[1]
parallel.begin()
rank = int(os.environ["RANK"])
assert chosen == [rank], chosen  # an object's bytes would else be laid on the first card by every process
kinds = {device.type for device in dist.group.WORLD._device_types}
assert "cuda" in kinds

# the first evaluation: scores lie in memory
metrics = Metrics()
metrics.add("entropy", torch.tensor(3.0 + rank), torch.tensor(1.0 + rank))
assert metrics.read() == {"entropy": 7 / 3}
assert parallel.summed(torch.tensor([1, rank])).tolist() == [2, 1]

assert parallel.gathered({"rank": rank, "scores": torch.tensor([rank])}) == [
    {"rank": 0, "scores": torch.tensor([0])}, {"rank": 1, "scores": torch.tensor([1])}
]
assert parallel.from_first(["mine", None][rank]) == "mine"
assert parallel.agreed([None, 15][rank]) == 15
parallel.wait()
with parallel.first_goes_first():
    pass
try:
    with parallel.failing_together():
        if rank:
            raise TrainingError("of the second")
except TrainingError as error:
    assert error.message == "of the second"
else:
    raise AssertionError("the first has not heard of it")
parallel.end()
"""


def as_on_two_gpus(tmp_path: Path, *backends: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "two_gpus.py"
    script.write_text(AS_ON_TWO_GPUS)
    command = [*LAUNCHER, "--nproc-per-node=2", str(script), *backends]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


def test_on_gpus_what_lies_in_memory_goes_by_a_backend_that_takes_it(tmp_path: Path) -> None:
    done = as_on_two_gpus(tmp_path)
    assert done.returncode == 0, done.stderr


def test_nccl_alone_would_refuse_what_lies_in_memory(tmp_path: Path) -> None:
    """The negative control: the group that accelerate makes when it is not told otherwise."""
    done = as_on_two_gpus(tmp_path, "nccl")
    assert done.returncode != 0
    assert "metrics.read()" in done.stderr
    assert "No backend type associated with device type cpu" in done.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [("train.pairs_per_step=1", "cannot share 1 pairs per step"), ("engine=trl", "trains in one process")],
)
def test_what_cannot_be_shared_is_refused(setting: str, message: str, tiny: Tiny, tmp_path: Path) -> None:
    done = train(tiny, tmp_path / "run", 2, setting)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback (most recent call last)" not in done.stderr.split("error: ")[0]
