"""`qdpo train` from outside: a run, its continuation, dry runs, and every mistake with its message and exit code."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training.tiny import Tiny, make_rows, train_until, write_rows

import qdpo
from qdpo.cli import main as cli
from qdpo.cli.main import main
from qdpo.cli.options import understand
from qdpo.config import presets

ENV = {**os.environ, "PYTHONPATH": str(Path(qdpo.__file__).parents[1])}
ENV.pop("QDPO_TRACEBACK", None)


def qdpo_train(*args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `qdpo train ARGS` in a process of its own."""
    command = [sys.executable, "-m", "qdpo", "train", *map(str, args)]
    return subprocess.run(command, env=ENV, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_a_run_leaves_everything_it_promises_and_can_be_resumed(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "my run"
    result = qdpo_train("--preset", tiny.preset, "--run-dir", run, "--set", "train.max_steps=4", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for said in ("ok policy equals reference", "ok every adapter learns", "held-out reward accuracy", "ok done in"):
        assert said in result.stderr
    next_steps = result.stderr[result.stderr.index("next:\n") :]
    for verb in ("chat", "eval", "merge-export"):
        assert f"qdpo {verb} --run '{run}'" in next_steps
    for name in ("config.yaml", "run.json", "data_report.json", "metrics.jsonl", "README.md"):
        assert (run / name).stat().st_size > 0, name
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "manifest.json"):
        assert (run / "adapter" / name).stat().st_size > 0, name
    assert len(list((run / "plots").glob("*.png"))) >= 2
    record = json.loads((run / "run.json").read_text())
    assert record["state"] == "finished"
    assert record["command"].startswith("qdpo train --preset")
    before = (run / "adapter" / "adapter_model.safetensors").read_bytes()

    again = qdpo_train("--resume", "--run-dir", run, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resuming from step-000004" in again.stderr
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == before


def test_an_interrupted_run_is_continued_by_the_command_that_the_help_names(tiny: Tiny, tmp_path: Path) -> None:
    train_until(tiny, tmp_path / "run", 3, "train.max_steps=4", "train.save_every=2")
    assert main(["train", "--run-dir", str(tmp_path / "run"), "--resume"]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["result"]["steps"] == 4


@pytest.mark.parametrize("name", presets.names())
def test_a_dry_run_of_every_shipped_preset(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "quickstart" and not (Path(qdpo.__file__).parent / "assets" / "base" / "config.json").is_file():
        pytest.skip("the embedded model is not in this checkout")
    assert main(["train", "--preset", name, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert f"name: {name}" in said.out
    assert "nothing was downloaded" in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_as_a_command_of_its_own_prints_a_preset_that_can_be_used(tiny: Tiny, tmp_path: Path) -> None:
    result = qdpo_train("--preset", tiny.preset, "--set", "lora.r=2", "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "44 pairs of 44 rows" in result.stderr
    assert "20 steps of 8 pairs: 160 pairs of 44 (3.64 epochs)" in result.stderr
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "again.yaml").write_text(result.stdout)
    again = qdpo_train("--preset", "again.yaml", "--dry-run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "r: 2" in again.stdout


def test_a_dry_run_on_a_terminal_begins_with_what_matters_and_keeps_the_settings_for_verbose(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--preset", str(tiny.preset), "--run-dir", str(tmp_path / "run"), "--dry-run"]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(arguments) == 0
    said = capsys.readouterr()
    names = ["memory", "time", "model", "data", "held out", "template", "length", "loss", "run directory", "device"]
    lines = [line for line in said.err.splitlines() if line[:14].strip() in names]
    assert [line[:14].strip() for line in lines] == names
    assert "fits with" in lines[0]
    assert "LoRA of rank" in lines[2]
    assert "--verbose" in said.err
    assert said.out == ""
    assert main([*arguments, "--verbose"]) == 0
    said = capsys.readouterr()
    assert "lora_alpha: " in said.out
    assert "schedule       " in said.err
    assert main(["train", "--preset", str(tiny.preset), "--verbose"]) == 64


def test_model_and_data_replace_those_of_a_preset(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(tiny.model), "--data", str(tiny.train), "--run-dir", str(tmp_path / "run"), "--dry-run"]
    assert main(["train", "--preset", "garrulus-a40", *arguments]) == 0
    said = capsys.readouterr()
    assert str(tiny.model) in said.out
    assert "data.revision" not in said.err
    assert "44 rows" in said.err
    assert "note: data.template: `auto` instead of `none`, which was chosen for allenai/winogrande" in said.err
    assert "note: train.max_steps: none instead of `200`, which was chosen for allenai/winogrande" in said.err


@pytest.fixture
def models(tiny: Tiny, tmp_path: Path) -> Path:
    """Copies of the tiny model, each with one fault."""
    folder = tmp_path / "models"
    for name in ("broken", "quantized", "cut"):
        shutil.copytree(tiny.model, folder / name)
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (folder / "broken" / "model.safetensors").write_bytes(b"this is no safetensors file")
    config = json.loads((folder / "quantized" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (folder / "quantized" / "config.json").write_text(json.dumps(config))
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Data files, each with one fault."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = make_rows(20, seed=5)
    write_rows(folder / "empty-answer.jsonl", [*rows[:7], {**rows[7], "rejected": ""}, *rows[8:]])
    write_rows(folder / "columns.jsonl", [{"question": "a", "answer": "b"}])
    (folder / "broken.jsonl").write_text(json.dumps(rows[0]) + "\n{not json\n")
    (folder / "empty.jsonl").write_text("")
    (folder / "pairs.xls").write_text("?")
    return folder


TRAIN = ["--preset", "{preset}", "--run-dir", "{tmp}/run"]
OURS = ["--preset", "garrulus-t4", "--model", "{model}", "--data", "{rows}"]
MISTAKES = {
    "no preset": ([], 64, "which preset?"),
    "unknown preset": (["--preset", "garulus"], 78, "garulus"),
    "a GPU's preset without one": (["--preset", "garrulus-a40", "--auto"], 69, "garrulus-a40 is made for a GPU"),
    "a GPU's preset on another model": ([*OURS, "--run-dir", "{tmp}/run"], 69, "made for a GPU (NVIDIA T4 (16 GB))"),
    "resume without a folder": (["--resume"], 64, "--resume needs --run-dir"),
    "resume of nothing": (["--resume", "--run-dir", "{tmp}/nothing"], 66, "holds no run"),
    "a foreign folder": (["--preset", "{preset}", "--run-dir", "{data}"], 73, "not empty"),
    "a file as folder": (["--preset", "{preset}", "--run-dir", "{preset}"], 73, "is a file"),
    "an unknown key": ([*TRAIN, "--set", "train.learning_rat=1"], 78, "learning_rate"),
    "a value of the wrong type": ([*TRAIN, "--set", "train.max_steps=many"], 78, "max_steps"),
    "a loss that cannot be": ([*TRAIN, "--set", "loss.loss_type=exo_pair"], 78, "label_smoothing"),
    "a missing model": ([*TRAIN, "--model", "{models}/absent"], 66, "there is no model folder"),
    "a folder without a model": ([*TRAIN, "--model", "{models}/empty"], 66, "config.json"),
    "broken weights": ([*TRAIN, "--model", "{models}/broken", "--data", "{rows}"], 65, "broken"),
    "weights cut short": ([*TRAIN, "--model", "{models}/cut", "--data", "{rows}"], 65, "cut"),
    "a quantized base": ([*TRAIN, "--model", "{models}/quantized", "--data", "{rows}"], 78, "quantized already"),
    "a hub model without network": ([*TRAIN, "--model", "nobody/nothing"], 69, "the hub cannot be reached"),
    "a target that is not there": ([*TRAIN, "--set", "lora.target_modules=q_prj"], 78, "q_proj"),
    "a missing adapter": ([*TRAIN, "--set", "model.adapter={tmp}/absent"], 66, "adapter"),
    "missing data": ([*TRAIN, "--data", "{data}/absent.jsonl"], 66, "absent.jsonl"),
    "data of an unknown kind": ([*TRAIN, "--data", "{data}/pairs.xls"], 65, "pairs.xls"),
    "a line that is not JSON": ([*TRAIN, "--data", "{data}/broken.jsonl"], 65, "the line is not JSON"),
    "no rows": ([*TRAIN, "--data", "{data}/empty.jsonl"], 65, "empty.jsonl"),
    "unknown columns": ([*TRAIN, "--data", "{data}/columns.jsonl"], 65, "columns.jsonl"),
    "an empty answer": ([*TRAIN, "--data", "{data}/empty-answer.jsonl"], 65, "1 of 20 rows"),
    "a template that is not there": ([*TRAIN, "--set", "data.template=zefyr"], 78, "zefyr"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_explained_in_its_own_words_with_its_exit_code(
    mistake: str,
    tiny: Tiny,
    models: Path,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("QDPO_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)
    arguments, code, part = MISTAKES[mistake]
    places = {"preset": tiny.preset, "model": tiny.model, "rows": tiny.train}
    places |= {"tmp": tmp_path, "models": models, "data": files}
    # these presets are made for a card; that there is none is part of the mistake
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["train", *(argument.format(**places) for argument in arguments)]) == code
    said = capsys.readouterr()
    assert said.out == ""
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert part in said.err[said.err.index("error: ") :]
    assert "internal error" not in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "run").exists(), "a start that failed leaves no run"
    assert not (tmp_path / "runs").exists()


def test_a_start_that_failed_removes_what_it_wrote_and_nothing_else(tiny: Tiny, files: Path, tmp_path: Path) -> None:
    start = ["train", "--preset", str(tiny.preset), "--data", str(files / "broken.jsonl"), "--run-dir"]
    (tmp_path / "mine").mkdir()
    assert main([*start, str(tmp_path / "mine" / "run")]) == 65
    assert list((tmp_path / "mine").iterdir()) == []
    # a run that has come further keeps what it has, and is resumed
    train_until(tiny, tmp_path / "run", 3, "train.max_steps=4", "train.save_every=2")
    kept = sorted((tmp_path / "run").rglob("*"))
    assert main(["train", "--run-dir", str(tmp_path / "run"), "--resume", "--set", "lora.r=3"]) == 78
    assert sorted((tmp_path / "run").rglob("*")) == kept


def test_flags_of_other_tools_are_settings(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--lr", "2e-4", "--epochs=2", "--batch-size", "4", "--beta", "0.3", "--lora_r", "2", "--max-steps=7"]
    flags += ["--learning-rate=3e-4", "--output_dir", "out", "--base_model", "mine", "--set", "data.max_rows=16"]
    parser, _, _ = cli._parser("train")
    args = parser.parse_args(understand(["train", "--preset", str(tiny.preset), *flags], parser_of("train")))
    assert (args.run_dir, args.model) == ("out", "mine")
    config = qdpo.Config.load(args.preset, args.overrides)
    found = (config.train.learning_rate, config.train.num_train_epochs, config.train.pairs_per_step, config.loss.beta)
    assert found == (3e-4, 2.0, 4, 0.3)
    assert (config.lora.r, config.train.max_steps, config.data.max_rows) == (2, 7, 16)
    assert "note: --lr 2e-4: --set train.learning_rate=2e-4" in capsys.readouterr().err


def test_a_verbs_own_options_come_first() -> None:
    own = ["eval", "--batch-size", "4", "--model", "x"]
    assert understand(own, parser_of("eval")) == own
    # and a verb without settings leaves everything as it is
    assert understand(["push", "--lr", "1"], parser_of("push")) == ["push", "--lr", "1"]


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The parser of a verb's own options."""
    _, chosen, _ = cli._parser(verb)
    assert chosen is not None
    return chosen


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--lr"], "--lr needs a value"),
        (["--lr", "--beta", "1"], "--lr needs a value"),
        (["--learning-rat", "1"], "did you mean `--learning-rate`?"),
        (["--nam", "x"], "unknown argument: --nam x"),
        (["--lr", "fast"], "train.learning_rate"),
    ],
)
def test_a_flag_that_is_not_understood(
    flags: list[str], part: str, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--preset", str(tiny.preset), "--dry-run", *flags]) in (64, 78)
    assert part in capsys.readouterr().err


def test_a_preset_for_a_gpu_trains_on_a_cpu_where_that_is_allowed(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = tmp_path / "run"
    short = ["model.dtype=float32", "train.max_steps=1", "train.pairs_per_step=2", "data.max_rows=8", "samples.count=0"]
    begin = ["--preset", "garrulus-t4", "--model", str(tiny.model), "--data", str(tiny.train)]
    begin += [word for setting in [*short, "data.template=auto"] for word in ("--set", setting)]
    assert main(["train", *begin, "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "a run would be refused: garrulus-t4 is made for a GPU (NVIDIA T4 (16 GB)), and torch sees none: " in said
    assert main(["train", *begin, "--run-dir", str(run)]) == 69
    assert not run.exists()
    assert main(["train", *begin, "--run-dir", str(run), "--allow-cpu"]) == 0
    resume = ["--run-dir", str(run), "--resume", "--set", "train.max_steps=2", "--allow-change", "train.max_steps"]
    record = (run / "run.json").read_bytes()
    assert main(["train", *resume]) == 69
    assert (run / "run.json").read_bytes() == record
    assert main(["train", *resume, "--allow-cpu"]) == 0
    assert json.loads((run / "run.json").read_text())["result"]["steps"] == 2


def test_a_mistake_in_a_process_of_its_own_shows_no_traceback(tiny: Tiny, models: Path, tmp_path: Path) -> None:
    arguments = ("--preset", tiny.preset, "--model", models / "broken", "--run-dir", "run")
    result = qdpo_train(*arguments, cwd=tmp_path)
    assert result.returncode == 65
    assert result.stderr.splitlines()[-1].startswith(("error: ", "hint: "))
    assert "Traceback" not in result.stderr
