"""`qdpo explain` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report import conftest as runs
from report import curves

from qdpo.cli.main import main


@pytest.fixture
def run(tmp_path: Path) -> runs.Run:
    """A finished run, not written yet."""
    return runs.Run(tmp_path)


def with_curve(run: runs.Run, evidence: Any) -> Path:
    """The run with the metrics of a drawn curve."""
    evals = [{"step": row["step"], **{f"eval_{k}": v for k, v in row.items() if k != "step"}} for row in evidence.evals]
    run.lines = sorted([*evidence.train, *evals], key=lambda row: row["step"])
    run.config["train"]["max_steps"] = run.run["result"]["steps"] = 200
    return run.write()


def test_says_what_it_is_what_to_change_and_who_says_so(run: runs.Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = with_curve(run, curves.draw(curves.over_fits(0.1, 0.4, 3), curves.Shape()))
    assert main(["explain", "--run", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("over-fitting (alarm)\n")
    assert "change: train less (train.num_train_epochs" in out
    assert "source: Zephyr" in out


def test_json(run: runs.Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--run", str(run.write()), "--json"]) == 0
    verdicts = json.loads(capsys.readouterr().out)
    assert (verdicts[0]["kind"], verdicts[0]["alarm"]) == ("learning", False)


def test_reads_samples_and_lengths_where_they_are(run: runs.Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run.write()
    loop = "and then it went on " * 40
    sample = {"step": 120, "sample": 0, "prompt": "Once", "base": "a short answer of six words", "policy": loop}
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n" + '{"torn')
    groups = {
        "chosen_longer": {"pairs": 100, "reward_accuracy": {"value": 0.95}},
        "chosen_shorter": {"pairs": 60, "reward_accuracy": {"value": 0.4}},
    }
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "heldout.json").write_text(json.dumps({"groups": groups}))
    assert main(["explain", "--run", str(folder), "--json"]) == 0
    verdicts = {verdict["kind"]: verdict for verdict in json.loads(capsys.readouterr().out)}
    assert "repeat themselves" in verdicts["degenerate"]["says"]
    assert "95.0% of 100" in verdicts["length-hacking"]["says"]


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--run", str(tmp_path)]) == 66
    error = capsys.readouterr().err
    assert "name a run directory" in error
    assert "Traceback" not in error
