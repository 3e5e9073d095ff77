"""`qdpo data` as a command: the report on stdout, mistakes with their exit codes and no traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import qdpo
from qdpo.cli.main import main

ENV = {**os.environ, "PYTHONPATH": str(Path(qdpo.__file__).parents[1]), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}


def qdpo_data(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qdpo", "data", *args], env=ENV, capture_output=True, text=True, timeout=240
    )


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(40)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_report_preview_and_contamination(pairs: Path, tmp_path: Path):
    against = tmp_path / "dev.csv"
    against.write_text("id,text\n1,question 3 yes 3\n2,nothing of this\n")
    report = tmp_path / "report.json"
    result = qdpo_data(str(pairs), "--preview", "2", "--against", str(against), "--report", str(report))
    assert result.returncode == 0, result.stderr
    assert "columns prompt, chosen, rejected (text)" in result.stdout
    assert "AUC of length alone" in result.stdout
    assert result.stdout.count("prompt, not learned") == 2
    assert "{BOS <s>}" in result.stdout
    assert "[EOS </s>]" in result.stdout
    found = json.loads(report.read_text())
    assert found["train"]["pairs"] + found["heldout"]["pairs"] == 40
    assert found["train"]["contamination"][0]["touched"]["whole"]["count"] in (0, 1)
    assert f"items of {against}" in result.stdout.replace("\n", "") or str(against) in result.stdout
    assert "\x1b[" not in result.stdout


@pytest.mark.parametrize(
    ("change", "code", "parts"),
    [
        (
            lambda rows: rows.replace("yes 3", "no 3"),
            65,
            ["error: ", "identical", "lines", "line 4: ", "hint: ", "on_bad_row=drop"],
        ),
        (lambda rows: rows + "{broken\n", 65, ["not JSON", "line 41"]),
        (lambda rows: rows.replace("chosen", "good"), 65, ["no known preference format", "chosen: good"]),
    ],
)
def test_mistakes_in_the_data(pairs: Path, change, code: int, parts: list[str]):
    pairs.write_text(change(pairs.read_text()))
    result = qdpo_data(str(pairs))
    assert result.returncode == code
    for part in parts:
        assert part in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_place_for_the_report_is_refused_before_the_data_is_looked_for(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = pairs.read_bytes()
    against = tmp_path / "dev.csv"
    against.write_text("id,text\n1,question 3\n")
    for data, report, says in (
        ("missing.jsonl", str(tmp_path / "no" / "report.json"), "there is no folder"),
        ("missing.jsonl", str(tmp_path), "is a folder"),
        ("missing.jsonl", "", "--report '' is empty"),
        (str(pairs), str(pairs), "is read, and would be overwritten"),
        (str(pairs), str(against), "is read, and would be overwritten"),
    ):
        assert main(["data", data, "--against", f"{against}#text", "--report", report]) == 73
        said = capsys.readouterr()
        assert says in said.err
        assert said.out == ""
    assert pairs.read_bytes() == before


@pytest.mark.parametrize(
    ("args", "code", "part"),
    [
        (["missing.jsonl"], 66, "there is no file missing.jsonl"),
        (["nobody/has-this"], 69, "cannot be reached"),
        (["quickstart", "--preview", "-1"], 64, "--preview"),
        (["quickstart", "--preset", "quikstart"], 78, "did you mean"),
        ([], 64, "PATH_OR_NAME"),
    ],
)
def test_mistakes_on_the_command_line(args: list[str], code: int, part: str):
    result = qdpo_data(*args)
    assert result.returncode == code, result.stderr
    assert part in result.stderr
    assert "Traceback" not in result.stderr
