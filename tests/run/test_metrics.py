"""metrics.jsonl of a run that was killed, resumed, or damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qdpo.errors import InputMissingError
from qdpo.run.metrics import all_ties, by_step, keep_until, read_metrics

ROWS: list[dict[str, Any]] = [
    {"step": 0, "eval_loss": 0.7},
    {"step": 1, "loss": 0.6},
    {"step": 2, "loss": 0.5},
    {"step": 2, "eval_loss": 0.4, "epoch": 1.0},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_lines_are_read_in_their_order(path: Path) -> None:
    assert read_metrics(path) == ROWS
    assert read_metrics(path.with_name("none.jsonl")) == []


def test_a_last_line_that_was_cut_short_is_left_out_and_another_is_an_error(path: Path) -> None:
    whole = path.read_text()
    path.write_text(whole + '{"step": 3, "lo')
    assert read_metrics(path) == ROWS
    for torn in ('{"step": 3, "lo\n', '{"loss": 1}\n', "[3]\n"):
        path.write_text(torn + whole)
        with pytest.raises(InputMissingError, match=r"metrics\.jsonl:1: not a line of metrics"):
            read_metrics(path)
        path.write_text(whole + torn)
        with pytest.raises(InputMissingError, match=r"metrics\.jsonl:5"):
            read_metrics(path)


def test_the_later_of_two_lines_for_one_step_counts() -> None:
    train, evals = by_step([*ROWS, {"step": 1, "loss": 0.1}, {"step": 0, "eval_loss": 0.2}])
    assert train == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.5}]
    assert evals == [{"step": 0, "loss": 0.2}, {"step": 2, "loss": 0.4, "epoch": 1.0}]


@pytest.mark.parametrize(("step", "left"), [(0, []), (1, ROWS[:2]), (2, ROWS)])
def test_a_resumed_run_keeps_the_lines_up_to_its_step(step: int, left: list[dict[str, Any]], path: Path) -> None:
    path.write_text(path.read_text() + '{"step": 2, "lo')
    keep_until(path, step)
    assert read_metrics(path) == left
    keep_until(path.with_name("none.jsonl"), step)
    assert not path.with_name("none.jsonl").exists()


def test_ties_are_told_from_results() -> None:
    ties = {f"rewards/{key}": 0.0 for key in ("chosen", "rejected", "margins", "accuracies")}
    assert all_ties(ties)
    assert not all_ties(ties | {"rewards/margins": 0.1})
    assert not all_ties({})
