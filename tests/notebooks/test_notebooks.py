"""The notebooks: clean, pinned in one cell, and every cell runs in a fresh kernel."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from notebooks.kernel import FOLDER, execute, parameters, pretend, read, text_of, values

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

# What CI puts in the place of the cell tagged `parameters`: everything is real, and short.
FEW_STEPS = {"train.max_steps": 6, "train.eval_every": 6, "samples.count": 1, "data.max_eval_rows": 32}
SHORT: dict[str, dict[str, Any]] = {
    "quickstart_cpu": {"OVERRIDES": FEW_STEPS, "QUANT": "q8_0"},
    "garrulus_t4": {
        "PRESET": "quickstart",
        "MODEL": "quickstart",
        "DATA": "quickstart",
        "OVERRIDES": FEW_STEPS,
        "QUICKSTART_STEPS": 2,
        "QUANT": "q8_0",
        "PROMPT": "Finish the sentence: The lamp did not light up the attic because",
        "MIRROR": "mirror",
    },
}


def assert_whole(run: Path, notebook: Any) -> None:
    """The run is finished, its curves are shown, its export is verified."""
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    images = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(images) == len(list((run / "plots").glob("*.png"))) > 0
    assert (run / "export" / "gguf" / "verify.json").is_file()
    assert "llama-cli -m" in text_of(notebook)


# ------------------------------------------------------------------------------------------------------------- as files


def test_both_are_here() -> None:
    assert {path.stem for path in NOTEBOOKS} == SHORT.keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_installs_once_and_pinned(path: Path) -> None:
    lines = [line for cell in read(path).cells for line in cell.source.splitlines()]
    [install] = [line for line in lines if "pip install" in line]
    assert "-c kept.txt" in install
    [kept] = [line for line in lines if line.endswith("> kept.txt")]
    assert "qdpo-source/notebooks/keep_installed.py" in kept
    assert lines.index(kept) < lines.index(install)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_badge_and_source_name_the_same_repository(path: Path) -> None:
    notebook = read(path)
    badge = re.search(r"https://colab\.research\.google\.com/github/(.+?)/blob/main/(.+?)\)", notebook.cells[0].source)
    assert badge is not None
    assert values(parameters(notebook).source)["SOURCE"] == f"https://github.com/{badge[1]}"
    assert badge[2] == f"notebooks/{path.name}"


def test_the_t4_notebook_asks_for_a_t4() -> None:
    metadata = read(FOLDER / "garrulus_t4.ipynb").metadata
    assert metadata["accelerator"] == "GPU"
    assert metadata["colab"]["gpuType"] == "T4"
    assert values(parameters(read(FOLDER / "garrulus_t4.ipynb")).source)["PRESET"] == "garrulus-t4"


# ------------------------------------------------------------------------------------------------------------- executed


def test_quickstart_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = execute("quickstart_cpu", tmp_path, SHORT["quickstart_cpu"], monkeypatch)
    assert_whole(tmp_path / "runs" / "quickstart", notebook)


@pytest.mark.slow
def test_quickstart_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = execute("quickstart_cpu", tmp_path, {}, monkeypatch)
    assert_whole(tmp_path / "runs" / "quickstart", notebook)
    assert json.loads((tmp_path / "runs" / "quickstart" / "run.json").read_text())["result"]["steps"] == 120


def test_the_t4_notebook_runs_with_the_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path / "bin", monkeypatch, gpu=True)
    notebook = execute("garrulus_t4", tmp_path, SHORT["garrulus_t4"], monkeypatch)
    assert_whole(tmp_path / "runs" / "garrulus", notebook)
    assert (tmp_path / "mirror" / "run.json").is_file()
