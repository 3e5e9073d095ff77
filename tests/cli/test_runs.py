"""`qdpo runs`: whole, unfinished and damaged runs in one table, and two of them compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from training.tiny import Tiny, train_tiny, train_until

from qdpo.cli.main import main
from qdpo.run import lock


@pytest.fixture(scope="module")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, a second one with another learning rate, one that died, two damaged ones, and other things."""
    runs = tmp_path_factory.mktemp("runs")
    quick = ("samples.count=0", "train.max_steps=10")
    train_tiny(tiny, runs / "first", *quick)
    train_tiny(tiny, runs / "second", *quick, "train.learning_rate=2e-3")
    train_until(tiny, runs / "third", 13, "samples.count=0")
    for name, content in (("broken", "{"), ("foreign", "[]")):
        (runs / name).mkdir()
        shutil.copy(runs / "first" / "config.yaml", runs / name)
        (runs / name / "run.json").write_text(content)
    (runs / "not a run").mkdir()
    (runs / "file").write_text("")
    return runs


def test_every_run_has_its_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(folder)]) == 0
    said = capsys.readouterr()
    names = {line.split()[0]: line for line in said.out.splitlines()}
    assert list(names) == ["run", "broken", "first", "foreign", "second", "third"]
    assert "finished" in names["first"]
    assert "10/10" in names["second"]
    assert "interrupted" in names["third"]
    assert "12/20" in names["third"]
    for damaged, reason in (("broken", "is not JSON"), ("foreign", "should hold one JSON object")):
        assert "damaged" in names[damaged]
        assert any(damaged in line and reason in line for line in said.err.splitlines())


def test_json_has_the_values(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(folder), "--json"]) == 0
    rows = {Path(row["folder"]).name: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == ["broken", "first", "foreign", "second", "third"]
    result = json.loads((folder / "first" / "run.json").read_text())["result"]
    first = rows["first"]
    assert (first["state"], first["step"], first["steps"], first["checkpoint"]) == ("finished", 10, 10, 10)
    assert first["before"]["prefers_chosen"] == result["before"]["eval_logps/accuracies"]
    assert first["before"]["reward_accuracy"] is None
    assert first["after"]["reward_accuracy"] == result["after"]["eval_rewards/accuracies"]
    assert first["after"]["reward_margin"] == result["after"]["eval_rewards/margins"]
    assert (first["seconds"], first["peak_memory_bytes"]) == (result["seconds"], result["peak_memory_bytes"])
    third = rows["third"]
    assert (third["state"], third["steps"], third["checkpoint"], third["seconds"]) == ("interrupted", 20, 10, None)
    assert third["step"] >= 10
    assert third["age_seconds"] >= 0
    for name in ("broken", "foreign"):
        assert rows[name]["state"] == "damaged"
        assert "run.json" in rows[name]["problem"]


def test_a_run_that_is_held_is_running_and_a_stopped_one_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder / "third", copy)
    with lock.locked(copy):
        assert main(["runs", str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "running"
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(record | {"state": "stopped"}))
    assert main(["runs", str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "stopped"


def test_two_runs_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = str(folder / "first"), str(folder / "second")
    assert main(["runs", "compare", first, second]) == 0
    said = capsys.readouterr()
    assert "train.learning_rate" in said.out
    assert "[--set]" in " ".join(said.out.split())
    assert "train.max_steps" not in said.out
    assert "cannot be compared" not in said.err
    assert main(["runs", "compare", first, second, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (setting,) = found["settings"]
    assert (setting["key"], setting["values"]) == ("train.learning_rate", [0.001, 0.002])
    assert setting["origins"][1] == "--set"
    assert setting["origins"][0].endswith("tiny.yaml:16")
    assert found["same_heldout"] is True
    assert [run["state"] for run in found["runs"]] == ["finished", "finished"]


def test_different_heldout_pairs_are_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder / "second", copy)
    record = json.loads((copy / "run.json").read_text())
    record["data"]["heldout"]["fingerprint"] = "0" * 64
    record["versions"]["torch"] = "1.0"
    (copy / "run.json").write_text(json.dumps(record))
    assert main(["runs", "compare", str(folder / "first"), str(copy)]) == 0
    said = capsys.readouterr()
    assert "different held-out pairs" in said.err
    assert "torch (version)" in said.out


def test_a_run_itself_is_a_folder_of_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(folder / "first"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["nowhere"], 66, "there is no folder nowhere"),
        (["compare", "FIRST"], 64, "takes two run directories, not 1"),
        (["compare"], 64, "takes two run directories, not 0"),
        (["FIRST", "FIRST"], 64, "takes one folder"),
        (["compare", "FIRST", "nowhere"], 66, "nowhere"),
        (["compare", "FIRST", "BROKEN"], 66, "not JSON"),
    ],
)
def test_mistakes(arguments: list[str], code: int, part: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"FIRST": str(folder / "first"), "BROKEN": str(folder / "broken")}
    assert main(["runs", *(places.get(word, word) for word in arguments)]) == code
    said = capsys.readouterr()
    assert part in said.err
    assert "Traceback" not in said.err


def test_no_run_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert "no run in" in capsys.readouterr().err
