"""The plots are drawn from the metrics, and only where there is something to draw."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qdpo.errors import InputMissingError
from qdpo.report.plots import draw_plots

ALL = ["loss.png", "rewards.png", "accuracies.png"]


def test_all_three(example: Any) -> None:
    written = draw_plots(example.write())
    assert [path.name for path in written] == ALL
    for path in written:
        with Image.open(path) as image:
            assert image.size == (1000, 600)
        assert path.stat().st_size < 150_000
        assert path.parent == example.folder / "plots"


def test_same_run_same_bytes(example: Any) -> None:
    folder = example.write()
    first = [path.read_bytes() for path in draw_plots(folder)]
    assert [path.read_bytes() for path in draw_plots(folder)] == first


def test_numbers_come_from_the_metrics(example: Any) -> None:
    folder = example.write()
    first = [path.read_bytes() for path in draw_plots(folder)]
    example.line(80, heldout=True)["eval_rewards/chosen"] = 5.0
    example.write()
    changed = [a != b.read_bytes() for a, b in zip(first, draw_plots(folder), strict=True)]
    assert changed == [False, True, False]


def test_only_what_has_points(example: Any) -> None:
    for line in example.lines:
        for key in [key for key in line if "rewards/" in key]:
            line[key] = math.nan
    assert [path.name for path in draw_plots(example.write())] == ["loss.png"]


def test_no_metrics(example: Any) -> None:
    example.lines = []
    assert draw_plots(example.write()) == []


def test_single_evaluation_and_no_training(example: Any) -> None:
    example.lines = example.lines[:1]
    example.run["name"] = "a $name$ with mathematics_{x}"
    assert [path.name for path in draw_plots(example.write())] == ALL


def test_accuracy_of_ties_is_no_point(example: Any) -> None:
    """Before the first step policy and reference are equal: an accuracy of 0 there says nothing."""
    for line in example.lines[1:]:
        for key in [key for key in line if key.endswith("rewards/accuracies")]:
            del line[key]
    example.line(0, heldout=True)["eval_rewards/accuracies"] = 0.0
    assert [path.name for path in draw_plots(example.write())] == ["loss.png", "rewards.png"]


def test_no_global_state(example: Any) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    draw_plots(example.write())
    assert dict(mpl.rcParams) == before


def test_not_a_run_directory(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError):
        draw_plots(tmp_path)
