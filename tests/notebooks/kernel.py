"""Notebooks in a fresh kernel: whole, or cell by cell, with other parameters and nothing else changed."""

from __future__ import annotations

import ast
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
TIMEOUT = 600
"""Seconds that a cell may take."""


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


def substituted(source: str, changed: dict[str, Any]) -> str:
    """A cell of parameters with other values."""
    given = values(source)
    assert changed.keys() <= given.keys()
    return "\n".join(f"{name} = {value!r}" for name, value in (given | changed).items())


def pretend(folder: Path, monkeypatch: pytest.MonkeyPatch, *, gpu: bool) -> None:
    """Put an `nvidia-smi` first on the path that sees a card, or none, whatever this machine has."""
    folder.mkdir()
    program = folder / "nvidia-smi"
    answer = (
        'test "$1" = -L && echo "GPU 0: pretended" && exit 0\nexit 9' if gpu else "echo NVIDIA-SMI has failed; exit 9"
    )
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.environ["PATH"]]))


def execute(name: str, folder: Path, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run all cells in an empty folder; the first failing one raises."""
    with session(name, folder, changed, monkeypatch) as notebook:
        notebook.run_all()
    return notebook.cells


class Session:
    """A notebook and its kernel.

    Attributes:
        cells: the notebook, with what its cells have put out.
        client: the kernel's.
    """

    def __init__(self, cells: Any, client: NotebookClient) -> None:
        self.cells, self.client = cells, client
        self.code = [number for number, cell in enumerate(cells.cells) if cell.cell_type == "code"]
        self.parameters = cells.cells.index(parameters(cells))

    def run(self, number: int) -> str:
        """Run a cell; returns what it printed.

        Raises:
            CellExecutionError: it failed.
        """
        self.client.execute_cell(self.cells.cells[number], number)
        return printed(self.cells.cells[number])

    def run_all(self) -> None:
        """Run all cells in order."""
        for number in self.code:
            self.run(number)

    def change(self, changed: dict[str, Any]) -> None:
        """Fill in the form again, and run it."""
        cell = self.cells.cells[self.parameters]
        cell.source = substituted(cell.source, changed)
        self.run(self.parameters)

    def find(self, text: str) -> int:
        """The number of the one code cell that has a text."""
        [number] = [number for number in self.code if text in self.cells.cells[number].source]
        return number

    def insert(self, source: str) -> str:
        """Run a line that the notebook does not have."""
        cell = nbformat.v4.new_code_cell(source)
        self.client.execute_cell(cell, 0, store_history=False)
        return printed(cell)


@contextlib.contextmanager
def session(
    name: str, folder: Path, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, timeout: int = TIMEOUT
) -> Iterator[Session]:
    """A fresh kernel in an empty folder."""
    cells = read(FOLDER / f"{name}.ipynb")
    cell = parameters(cells)
    cell.source = substituted(cell.source, changed)
    # `!qdpo` is the command beside this interpreter
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    client = NotebookClient(cells, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": folder}})
    with client.setup_kernel():
        yield Session(cells, client)


def printed(cell: Any) -> str:
    """What a cell printed."""
    return "".join(output.get("text", "") for output in cell.get("outputs", []))


def text_of(notebook: Any) -> str:
    """Everything that the cells printed."""
    return "".join(printed(cell) for cell in notebook.cells)
