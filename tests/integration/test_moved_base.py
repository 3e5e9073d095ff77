"""A run is used from any folder, and finds its base again when that has moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from training.tiny import StopAt, make_model, read_run, with_callbacks

from qdpo.cli.main import main

if TYPE_CHECKING:
    from training.tiny import Tiny

SETTINGS = ("train.max_steps=2", "train.save_every=1", "train.eval_every=2", "samples.count=0")


@pytest.fixture
def here(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `base`, `pairs.jsonl` and a run that was made with these names in `run`."""
    folder = tmp_path / "here"
    shutil.copytree(tiny.model, folder / "base")
    shutil.copy(tiny.train, folder / "pairs.jsonl")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("qdpo.report.plots.draw_plots", lambda folder: None)
    return folder


def train(*more: str) -> int:
    settings = [word for text in SETTINGS for word in ("--set", text)]
    return main(["train", *settings, "--run-dir", *more])


def begin(tiny: Tiny, stop_at: int | None = None) -> None:
    """A run of files named relatively to the current folder; it may fail at a step, and leave a checkpoint."""
    with with_callbacks(*([StopAt(stop_at)] if stop_at else [])):
        code = train("run", "--preset", str(tiny.preset), "--model", "base", "--data", "pairs.jsonl")
    assert (code == 0) == (stop_at is None)


def elsewhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Go to another folder; returns the run's place."""
    (here.parent / "there").mkdir(exist_ok=True)
    monkeypatch.chdir(here.parent / "there")
    return str(here / "run")


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_names_are_stored_from_the_root(tiny: Tiny, here: Path) -> None:
    begin(tiny)
    record = read_run(here / "run").record
    assert record["base"]["name"] == record["base"]["folder"] == str(here / "base")
    assert record["settings"]["model.name"] == str(here / "base")
    assert record["settings"]["data.name"] == str(here / "pairs.jsonl")
    card = (here / "run" / "README.md").read_text()
    assert str(here) not in card


def test_resume_export_chat_and_evaluation_work_from_another_folder(
    tiny: Tiny, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tiny, stop_at=2)
    run = elsewhere(here, monkeypatch)
    assert train(run, "--resume") == 0
    assert main(["merge-export", "--run", run, "--format", "safetensors"]) == 0
    assert main(["verify", f"{run}/export/safetensors"]) == 0
    assert main(["chat", "--run", run, "--prompt", "where?", "--max-new-tokens", "3"]) == 0
    assert main(["eval", "--run", run]) == 0
    assert (here / "run" / "evaluation" / "heldout.json").is_file()


def test_a_base_that_has_moved_is_followed(
    tiny: Tiny, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tiny)
    run = elsewhere(here, monkeypatch)
    new = here.parent / "disk" / "base"
    new.parent.mkdir()
    (here / "base").rename(new)
    given = ["--run", run, "--format", "safetensors"]
    chat = ["chat", "--run", run, "--prompt", "where?", "--max-new-tokens", "3"]
    for command in (["merge-export", *given], chat, ["eval", "--run", run]):
        capsys.readouterr()
        assert main(command) == 66
        message = told(capsys)
        assert f"the base of {run} is not at {here / 'base'} any more".replace(" ", "") in message.replace(" ", "")
        assert "--model DIR" in message
    assert main(["merge-export", *given, "--model", "../disk/base"]) == 0
    assert read_run(here / "run").record["base"]["folder"] == str(new)
    # from now on the run knows
    assert main(chat) == 0
    assert main(["verify", f"{run}/export/safetensors"]) == 0
    assert main(["eval", "--run", run]) == 0


@pytest.mark.parametrize("verb", ["chat", "eval", "verify", "merge-export"])
def test_each_verb_takes_the_new_place(
    verb: str, tiny: Tiny, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tiny)
    assert main(["merge-export", "--run", "run", "--format", "safetensors", "--no-verify"]) == 0
    (here / "base").rename(here / "moved")
    command = {
        "chat": ["chat", "--run", "run", "--prompt", "where?", "--max-new-tokens", "3"],
        "eval": ["eval", "--run", "run"],
        "verify": ["verify", "run/export/safetensors"],
        "merge-export": ["merge-export", "--run", "run", "--format", "safetensors", "--no-verify"],
    }[verb]
    assert main([*command, "--model", "moved"]) == 0
    assert "is at" in told(capsys)


@pytest.mark.parametrize("verb", ["chat", "merge-export"])
def test_another_base_is_not_taken_for_it(
    verb: str, tiny: Tiny, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tiny)
    (here / "base").rename(here / "moved")
    shutil.copytree(here / "moved", here / "other")
    make_model("llama", seed=9).save_pretrained(here / "other")
    before = (here / "run" / "run.json").read_text()
    command = {
        "chat": ["chat", "--run", "run", "--prompt", "where?"],
        "merge-export": ["merge-export", "--run", "run", "--format", "safetensors"],
    }[verb]
    assert main([*command, "--model", "other"]) == 66
    assert "are not those that were trained on" in told(capsys)
    assert main([*command, "--model", "nothing-here/at-all"]) == 69
    assert (here / "run" / "run.json").read_text() == before


def test_a_run_is_resumed_with_the_new_place(
    tiny: Tiny, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tiny, stop_at=2)
    (here / "base").rename(here / "moved")
    capsys.readouterr()
    assert train("run", "--resume") == 66
    assert "--model DIR" in told(capsys)
    assert train("run", "--resume", "--model", "moved") == 0
    run = elsewhere(here, monkeypatch)
    assert main(["merge-export", "--run", run, "--format", "safetensors"]) == 0
    assert read_run(here / "run").record["base"]["folder"] == str(here / "moved")


def test_a_run_of_an_earlier_version_with_a_relative_name_says_where_it_looked(
    tiny: Tiny, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tiny)
    record = read_run(here / "run").record
    record["base"] |= {"name": "base", "folder": "base"}
    (here / "run" / "run.json").write_text(json.dumps(record))
    run = elsewhere(here, monkeypatch)
    assert main(["merge-export", "--run", run, "--format", "safetensors"]) == 66
    assert "is not at base any more" in told(capsys)
    assert main(["merge-export", "--run", run, "--format", "safetensors", "--model", "../here/base"]) == 0
