"""`qdpo.train` and `qdpo.Run` as somebody uses them from Python: runs, mistakes, and the process as it was."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import transformers
from training.tiny import Tiny

import qdpo
from qdpo.errors import BusyError, ConfigError, InputMissingError, OutputError, UsageError
from qdpo.libraries import LOGGERS, VARIABLES
from qdpo.run import lock

SHORT = {"train.max_steps": 3, "train.eval_every": 2, "train.save_every": 2, "samples.count": 0}


@pytest.fixture(scope="module")
def two(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[qdpo.Run, qdpo.Run]:
    """Two runs in this process, the second with another base, loss and seed."""
    folder = tmp_path_factory.mktemp("two")
    first = qdpo.train(tiny.preset, SHORT, run_dir=folder / "first")
    config = qdpo.Config.load(tiny.preset, {**SHORT, "loss.beta": 0.3})
    return first, qdpo.train(config, ["train.seed=7", "model.quantization=none"], run_dir=folder / "second")


def test_two_runs_in_one_process_both_finish_as_configured(two: tuple[qdpo.Run, qdpo.Run]) -> None:
    first, second = two
    assert (first.state, second.state) == ("finished", "finished")
    assert (first.config.loss.beta, second.config.loss.beta) == (0.1, 0.3)
    assert (second.config.train.seed, second.config.model.quantization) == (7, "none")


def test_the_first_run_is_the_one_of_the_command_line(
    two: tuple[qdpo.Run, qdpo.Run], tiny: Tiny, tmp_path: Path
) -> None:
    command = json.loads((two[0].path / "run.json").read_text())["command"]
    assert command.startswith("qdpo train --run-dir ")
    again = command.replace(str(two[0].path), str(tmp_path / "again")).split()[1:]
    env = {**os.environ, "PYTHONPATH": str(Path(qdpo.__file__).parents[1])}
    subprocess.run([sys.executable, "-m", "qdpo", *again], env=env, check=True, capture_output=True, timeout=300)
    name = Path("adapter", "adapter_model.safetensors")
    assert (tmp_path / "again" / name).read_bytes() == (two[0].path / name).read_bytes()


LEFT = """
import gc, sys, warnings
import qdpo

for number in (1, 2):
    qdpo.train(sys.argv[1], {"train.max_steps": 2, "samples.count": 0}, run_dir=f"{sys.argv[2]}/{number}")
import torch, transformers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    left = [type(o).__name__ for o in gc.get_objects() if isinstance(o, transformers.PreTrainedModel | torch.nn.Linear)]
print("left:", left)
"""


def test_nothing_of_a_run_stays_in_memory(tiny: Tiny, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(qdpo.__file__).parents[1])}
    command = [sys.executable, "-c", LEFT, str(tiny.preset), str(tmp_path)]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=300)
    assert "left: []" in done.stdout, done.stdout


def test_what_was_measured(two: tuple[qdpo.Run, qdpo.Run]) -> None:
    metrics = two[0].metrics
    assert [(row.step, row.part) for row in metrics] == [
        *((0, "held-out"), (1, "train"), (2, "train"), (2, "held-out"), (3, "train"), (3, "held-out"))
    ]
    assert metrics[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert [step for step, _ in metrics.curve("loss", "train")] == [1, 2, 3]
    assert metrics.curve("no such metric") == []
    table = pytest.importorskip("pandas") and metrics.to_pandas()
    assert list(table["step"]) == [0, 1, 2, 2, 3, 3]


def test_what_it_means_and_where_it_is_told(two: tuple[qdpo.Run, qdpo.Run]) -> None:
    run = two[0]
    assert run.verdicts()
    assert "qdpo train" in run.card
    assert [path.name for path in run.plot()] == ["loss.png", "rewards.png", "accuracies.png"]
    assert run.report().name == "report.html"
    shown = run._repr_html_()
    assert "finished" in shown
    assert shown.count("data:image/png;base64,") == 3


def test_evaluate_writes_what_it_returns(two: tuple[qdpo.Run, qdpo.Run]) -> None:
    found = two[0].evaluate(limit=4)
    assert found["data"]["pairs"] == 4
    assert json.loads((two[0].path / "evaluation" / "heldout.json").read_text()) == found


def test_export_and_its_proof(two: tuple[qdpo.Run, qdpo.Run]) -> None:
    export = two[0].export("safetensors", dtype="float32")
    assert export.path == two[0].path / "export" / "safetensors"
    assert "model.safetensors" in [path.name for path in export.files]
    proof = export.verify(pairs=4)
    assert (proof.verdict, proof.passed, bool(proof), repr(proof)) == ("passed", True, True, "<Proof: passed>")
    assert qdpo.Export(export.path).verify(pairs=4)
    with open(export.path / "model.safetensors", "r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\xff")
    assert not export.verify(pairs=4)


def test_the_result_answers(two: tuple[qdpo.Run, qdpo.Run]) -> None:
    said = two[0].answer("1: the cat is in the house. Where is the cat?", max_new_tokens=4)
    assert isinstance(said, str)


def test_a_run_goes_on(two: tuple[qdpo.Run, qdpo.Run]) -> None:
    changed = {"train.max_steps": 5}
    with pytest.raises(qdpo.QdpoError, match=r"train\.max_steps"):
        qdpo.train(overrides=changed, run_dir=two[1].path, resume=True)
    run = qdpo.train(overrides=changed, run_dir=two[1].path, resume=True, allow_changes=["train.max_steps"])
    assert run.metrics[-1].step == 5


# --------------------------------------------------------------------------------------------------------- the process


@pytest.mark.parametrize("fails", [False, True])
def test_the_process_is_given_back(fails: bool, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = [
        {name: os.environ.get(name) for name in VARIABLES},
        [logging.getLogger(name).level for name in LOGGERS],
        transformers.logging.get_verbosity(),
        list(warnings.filters),
        sys.unraisablehook,
    ]
    overrides = SHORT | ({"model.name": str(tmp_path / "absent")} if fails else {"train.report_to": ["tensorboard"]})
    if fails:
        with pytest.raises(InputMissingError, match="there is no model folder"):
            qdpo.train(tiny.preset, overrides, run_dir=tmp_path / "run")
    else:
        pytest.importorskip("tensorboard")
        qdpo.train(tiny.preset, overrides, run_dir=tmp_path / "run")
    assert before == [
        {name: os.environ.get(name) for name in VARIABLES},
        [logging.getLogger(name).level for name in LOGGERS],
        transformers.logging.get_verbosity(),
        list(warnings.filters),
        sys.unraisablehook,
    ]


def test_a_thread_can_train_too(tiny: Tiny, tmp_path: Path) -> None:
    found: list[qdpo.Run] = []
    worker = threading.Thread(target=lambda: found.append(qdpo.train(tiny.preset, SHORT, run_dir=tmp_path / "run")))
    worker.start()
    worker.join()
    assert [run.state for run in found] == ["finished"]


# ------------------------------------------------------------------------------------------------------------- mistakes


def test_mistakes_are_explained_with_their_hint(tiny: Tiny, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"(?s)quickstat.*hint: .*quickstart"):
        qdpo.train("quickstat", run_dir=run_dir)
    with pytest.raises(ConfigError, match=r"(?s)train\.max_step.*hint: .*train\.max_steps"):
        qdpo.train(tiny.preset, {"train.max_step": 5}, run_dir=run_dir)
    with pytest.raises(ConfigError, match=r"max_steps"):
        qdpo.train(tiny.preset, {"train.max_steps": "many"}, run_dir=run_dir)
    with pytest.raises(UsageError, match="overrides are a mapping"):
        qdpo.train(tiny.preset, "train.max_steps=5", run_dir=run_dir)
    with pytest.raises(UsageError, match="which preset"):
        qdpo.train()
    with pytest.raises(UsageError, match="--resume needs --run-dir"):
        qdpo.train(resume=True)
    with pytest.raises(InputMissingError, match="holds no run"):
        qdpo.train(run_dir=run_dir, resume=True)
    with pytest.raises(InputMissingError, match="holds no run"):
        qdpo.Run.open(run_dir)
    assert not run_dir.exists()


def test_a_folder_that_is_taken_or_in_use_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        qdpo.train(tiny.preset, SHORT, run_dir=tmp_path)
    with lock.locked(tmp_path / "busy"), pytest.raises(BusyError, match="works in"):
        qdpo.train(tiny.preset, SHORT, run_dir=tmp_path / "busy")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_export_option_of_another_format_is_refused(tmp_path: Path) -> None:
    run = qdpo.Run(tmp_path)
    with pytest.raises(UsageError, match="there is no export format 'ggfu'"):
        run.export("ggfu")
    with pytest.raises(UsageError, match="--quant is for gguf"):
        run.export("safetensors", quant="q8_0")
    with pytest.raises(InputMissingError, match=r"run\.json is missing"):
        run.export()


def test_code_of_others_is_not_allowed_by_a_file(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: {tiny.preset}\nmodel:\n  trust_remote_code: true\n  revision: {'a' * 40}\n")
    with pytest.raises(ConfigError, match="a file cannot allow"):
        qdpo.train(file, run_dir=tmp_path / "run")
