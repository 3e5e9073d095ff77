"""The notebooks: clean, pinned in one cell, and every cell runs in a fresh kernel."""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

# What CI puts in the place of the cell tagged `parameters`: everything is real, and short.
FEW_STEPS = {"train.max_steps": 6, "train.eval_every": 6, "samples.count": 1, "data.max_eval_rows": 32}
SHORT: dict[str, dict[str, Any]] = {
    "quickstart_cpu": {"OVERRIDES": FEW_STEPS, "QUANT": "q8_0"},
    "garrulus_t4": {
        "PRESET": "quickstart",
        "DATA": "quickstart",
        "OVERRIDES": FEW_STEPS,
        "QUICKSTART_STEPS": 2,
        "QUANT": "q8_0",
        "PROMPT": "Finish the sentence: The lamp did not light up the attic because",
        "MIRROR": "mirror",
    },
}


def read(path: Path) -> Any:
    """A notebook."""
    return nbformat.read(path, as_version=4)


def parameters(notebook: Any) -> Any:
    """The one cell that says what the others do."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1
    return cells[0]


def values(source: str) -> dict[str, Any]:
    """What a cell of assignments assigns."""
    body = ast.parse(source).body
    assert all(isinstance(node, ast.Assign) for node in body)
    return {node.targets[0].id: ast.literal_eval(node.value) for node in body}  # type: ignore[attr-defined]


def substitute(notebook: Any, changed: dict[str, Any]) -> None:
    """Give parameters other values; nothing else is touched."""
    cell = parameters(notebook)
    given = values(cell.source)
    assert changed.keys() <= given.keys()
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in (given | changed).items())


def execute(name: str, folder: Path, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run all cells in a fresh kernel, in an empty folder; the first failing one raises."""
    notebook = read(FOLDER / f"{name}.ipynb")
    substitute(notebook, changed)
    # `!qdpo` is the command beside this interpreter
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}})
    return client.execute()


def text_of(notebook: Any) -> str:
    """Everything that the cells printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


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
    installs = [line for cell in read(path).cells for line in cell.source.splitlines() if "pip install" in line]
    assert len(installs) == 1
    assert "-c qdpo-source/constraints.txt" in installs[0]


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
    notebook = execute("garrulus_t4", tmp_path, SHORT["garrulus_t4"], monkeypatch)
    assert_whole(tmp_path / "runs" / "garrulus", notebook)
    assert (tmp_path / "mirror" / "run.json").is_file()
