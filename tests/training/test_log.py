"""What stands in metrics.jsonl after a crash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qdpo.hardware import find_device
from qdpo.training.log import MetricsFile, read_metrics


def metrics_file(path: Path) -> MetricsFile:
    return MetricsFile(path, find_device())


def test_metrics_are_one_json_object_a_line(tmp_path: Path) -> None:
    file = metrics_file(tmp_path / "metrics.jsonl")
    file.begin(0, 0)
    file.write(0, {"eval_loss": 0.7})
    file.write(5, {"loss": 0.5} | file.measured(1_000))
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 5]
    assert lines[0] == {"step": 0, "eval_loss": 0.7}
    assert lines[1]["loss"] == 0.5
    assert lines[1]["tokens_per_second"] > 0
    assert lines[1]["peak_memory_gib"] > 0


def test_a_resume_drops_the_lines_of_steps_that_come_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 3, 4)))
    metrics_file(path).begin(2, 0)
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize("rest", ['{"step": 2, "lo', '{"step"', "\x00\x00\x00", '{"loss": 1}'])
def test_a_last_line_cut_short_by_a_crash_is_dropped(rest: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n' + rest)
    file = metrics_file(path)
    file.begin(3, 0)
    file.write(4, {"loss": 0.5})
    assert [line["step"] for line in read_metrics(path)] == [1, 4]


def test_a_start_from_step_0_leaves_nothing_of_an_earlier_try(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "eval_loss": 0.7}\n{"step": 1, "loss": 1.0}\n')
    metrics_file(path).begin(0, 0)
    assert path.read_text() == ""


def test_a_value_that_is_not_finite_is_never_written_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        metrics_file(tmp_path / "metrics.jsonl").write(1, {"loss": float("nan")})
