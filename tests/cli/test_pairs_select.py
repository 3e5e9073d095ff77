"""`qdpo pairs select`: from a file to a part of it, by the file, by a base and by a run; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training.tiny import Tiny, TinyRun, make_rows, train_tiny, write_rows

from qdpo.cli.main import main
from qdpo.data.files import readers
from qdpo.pairing.select import TWIN


@pytest.fixture(scope="module")
def short_run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return train_tiny(tiny, tmp_path_factory.mktemp("select") / "run", "train.max_steps=4")


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """Twenty rows with scores; row 3 (from 1) has no rejected answer, row 8 repeats row 7."""
    rows: list[dict[str, Any]] = [
        {**row, "score_chosen": 5 + i % 4, "score_rejected": 4} for i, row in enumerate(make_rows(20, seed=5))
    ]
    rows[2]["rejected"] = ""
    rows[7] = dict(rows[6])
    write_rows(tmp_path / "scored.jsonl", rows)
    return tmp_path / "scored.jsonl"


def chosen(source: Path, *arguments: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows that are kept, and the report."""
    out, report = source.with_name("part.jsonl"), source.with_name("report.json")
    out.unlink(missing_ok=True)
    assert main(["pairs", "select", str(source), "--out", str(out), "--report", str(report), *arguments]) == 0
    return list(readers.read(out)), json.loads(report.read_text())


def test_scores_choose_where_nothing_is_said(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, report = chosen(scored)
    assert report["by"] == ["score"]
    assert len(rows) == report["kept"] == 6
    assert {row["score_chosen"] for row in rows} == {7, 8}
    # the file's own order and lines
    lines = scored.read_text().splitlines()
    assert [lines.index(json.dumps(row)) for row in rows] == sorted(lines.index(json.dumps(row)) for row in rows)
    assert report["left_out"] == {"ranked lower": 13, "cannot be used: `rejected` is empty": 1}
    said = capsys.readouterr()
    assert said.out == f"{scored.with_name('part.jsonl')}\n"
    assert "score of chosen over rejected" in said.err
    assert "cannot be used: `rejected` is empty" in said.err
    assert f"qdpo train --model MODEL --data {scored.with_name('part.jsonl')}" in said.err
    assert "--out random.jsonl --by random --keep 6" in said.err


def test_doubles_go_and_say_of_what(scored: Path) -> None:
    rows, report = chosen(scored, "--by", "duplicates")
    doubles = {left["row"]: left["why"] for left in report["rows_left_out"] if left["reason"] == TWIN}
    assert doubles[8] == "almost the same as line 7"
    assert len(rows) == 19 - len(doubles)
    assert len(doubles) < 5


def test_a_base_and_a_run_choose_by_what_they_say_of_the_pairs(
    scored: Path, tiny: Tiny, short_run: TinyRun, tmp_path: Path
) -> None:
    """The margins are those of `qdpo eval`, whose engine computes them."""
    _, report = chosen(scored, "--by", "base", "--model", str(tiny.model), "--set", "model.quantization=none")
    assert "base_margin" in report["before"]
    assert report["before"]["base_margin"] < report["after"]["base_margin"]
    _, hard = chosen(scored, "--by", "hard", "--model", str(tiny.model), "--set", "model.quantization=none")
    assert hard["before"] == pytest.approx(report["before"])
    assert hard["after"]["base_margin"] < hard["before"]["base_margin"]
    rows, by_run = chosen(scored, "--run", str(short_run.folder), "--keep", "0.5")
    assert by_run["by"] == ["score", "run"]
    assert by_run["after"]["run_margin"] > by_run["before"]["run_margin"]
    _, new = chosen(scored, "--run", str(short_run.folder), "--by", "new")
    assert new["after"]["run_margin"] < by_run["before"]["run_margin"] == new["before"]["run_margin"]
    usable = tmp_path / "usable.jsonl"
    usable.write_text("".join(line + "\n" for i, line in enumerate(scored.read_text().splitlines()) if i != 2))
    run = ["eval", "--run", str(short_run.folder), "--pairs", str(usable), "--out", str(tmp_path / "eval")]
    assert main(run) == 0
    found = json.loads((tmp_path / "eval" / "pairs-usable.json").read_text())
    beta = found["beta"]
    assert by_run["before"]["run_margin"] * beta == pytest.approx(
        found["groups"]["all"]["reward_margin"]["value"], abs=1e-6
    )
    assert len(rows) == 10


def test_the_same_command_writes_the_same_bytes(scored: Path, tmp_path: Path) -> None:
    found = []
    for name in ("a.jsonl", "b.jsonl"):
        arguments = ["--out", str(tmp_path / name), "--by", "random,duplicates", "--keep", "7", "--seed", "4"]
        assert main(["pairs", "select", str(scored), *arguments]) == 0
        found.append((tmp_path / name).read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--by", "lenght"], 64, "did you mean `length`?"),
        (["--by", "length", "--keep", "none"], 64, "no share and no number"),
        (["--by", "length", "--keep", "2.0"], 64, "between 0 and 1"),
        (["--by", "length", "--keep", "500"], 65, "has 19 usable pairs"),
        (["--by", "length", "--seed", "-1"], 64, "below 0"),
        (["--by", "length", "--report", "part.jsonl"], 73, "is the file of the pairs"),
        (["--by", "length", "--report", "."], 73, "is a folder"),
        (["--by", "length", "--report", "no/report.json"], 73, "no folder no"),
        (["--by", "length", "--set", "data.max_rows=5"], 64, "reads no such setting"),
        (["--by", "run", "--run", "r", "--set", "model.quantization=none"], 64, "what was trained"),
        (["--by", "length", "--set", "data.format=orka"], 78, "orka"),
        (["--by", "base", "--model", "./nowhere"], 66, "nowhere"),
        (["--by", "base"], 64, "asks a base model"),
        (["--by", "run"], 64, "asks a run"),
        (["--by", "new"], 64, "asks a run"),
        (["--by", "length", "--model", "quickstart"], 64, "no criterion asks it"),
        (["--by", "length", "--run", "nowhere"], 64, "no criterion asks it"),
        (["--by", "run", "--run", "nowhere"], 66, "nowhere"),
    ],
)
def test_wrong_options_are_answered(
    scored: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(scored.parent)
    out = scored.with_name("part.jsonl")
    assert main(["pairs", "select", str(scored), "--out", str(out), *arguments]) == code
    said = capsys.readouterr().err
    assert says in said
    assert "hint: " in said
    assert "Traceback" not in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ('{"good": "a", "bad": "b"}\n', 65, "no known preference format"),
        ('{"prompt": "a", "chosen": "b", "rejected": ""}\n', 65, "1 of 1 row of"),
        ("[1, 2]\n", 65, "2 of 2 rows of"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', 64, "by what?"),
        (
            json.dumps({"instruction": "a", "completions": [{"response": "b", "overall_score": 1}]}) + "\n",
            65,
            "make pairs of it first",
        ),
    ],
)
def test_wrong_files_are_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, code: int, says: str
) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    source.write_text(text)
    assert main(["pairs", "select", str(source), "--out", str(out)]) == code
    said = capsys.readouterr().err
    assert says in said
    assert "hint: " in said
    assert not out.exists()


def test_what_is_no_file_is_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source, says in ((str(tmp_path), "is a folder"), ("user/name", "is no file"), ("gone.jsonl", "no file")):
        assert main(["pairs", "select", source, "--out", str(tmp_path / "b.jsonl"), "--by", "length"]) in (65, 66)
        assert says in capsys.readouterr().err
