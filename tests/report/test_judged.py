"""`qdpo eval --judge` keeps what the judge says, and card and page show it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluation.judging import prefer_good, serving
from report import extras
from report.conftest import Run

from qdpo.cli.main import main
from qdpo.report.card import render_card
from qdpo.report.page import render_page


def test_the_command_keeps_what_the_judge_says(example: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = example.write()
    extras.write_samples(folder, [(f"Why {i}?", "bad", "good") for i in range(10)])
    with serving(prefer_good) as url:
        assert main(["eval", "--run", str(folder), "--judge", url]) == 0
    assert "wins 100% [72%, 100%] of 10 decided" in capsys.readouterr().out
    kept = json.loads((folder / "evaluation" / "judge.json").read_text())
    assert (kept["kind"], kept["step"], kept["wins"]) == ("judge", 120, 10)
    for text in (render_card(folder), render_page(folder)):
        assert "of 10 decided" in text
        assert "another version" not in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "m", "--judge", "http://a.test"), "--judge needs --run"),
        (("--run", "RUN", "--judge", "http://a.test", "--pairs", "x"), "give one of them"),
        (("--run", "RUN", "--judge-model", "m"), "--judge-model is for --judge"),
        (("--run", "RUN", "--judge", "nowhere"), "not an address"),
    ],
)
def test_wrong_options_are_refused(
    arguments: tuple[str, ...], says: str, example: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = example.write()
    extras.write_samples(folder, [("Why?", "bad", "good")])
    assert main(["eval", *(str(folder) if word == "RUN" else word for word in arguments)]) != 0
    assert says in capsys.readouterr().err


def test_a_run_without_answers_has_nothing_to_judge(example: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder: Path = example.write()
    (folder / "samples.jsonl").unlink(missing_ok=True)
    assert main(["eval", "--run", str(folder), "--judge", "http://127.0.0.1:9"]) != 0
    assert "samples.count" in capsys.readouterr().err
