"""The T4 notebook, cell by cell: without a GPU, run again in any order, stopped half way, with pairs of one's own."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nbclient.exceptions import CellExecutionError
from notebooks.kernel import FOLDER, Session, pretend, printed, read, session

ASSETS = FOLDER.parent / "qdpo" / "assets"

OWN = {
    "PRESET": "quickstart",
    "MODEL": "base",
    "DATA": "pairs.jsonl",
    "OVERRIDES": {"train.max_steps": 4, "train.eval_every": 4, "samples.count": 1, "data.eval_fraction": 0.2},
    "QUICKSTART_STEPS": 2,
    "QUANT": "q8_0",
    "PROMPT": "The lamp did not light up the attic because",
}
"""A base and pairs of one's own, beside the notebook."""


def write_own(folder: Path) -> None:
    """What `OWN` names: the quickstart's base and 150 of its pairs under other names."""
    shutil.copytree(ASSETS / "base", folder / "base")
    rows = (ASSETS / "pairs" / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "pairs.jsonl").write_text("".join(rows[:150]))
    (folder / "others.jsonl").write_text("".join(rows[150:300]))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Session, Path]]:
    """The notebook after its first run, its kernel still there, and the folder that it ran in."""
    folder = tmp_path_factory.mktemp("garrulus")
    write_own(folder)
    with pytest.MonkeyPatch.context() as patch:
        pretend(folder / "bin", patch, gpu=True)
        with session("garrulus_t4", folder, OWN, patch) as notebook:
            notebook.run_all()
            yield notebook, folder


def written(folder: Path) -> dict[Path, tuple[int, int]]:
    """Inode and time of what is expensive to make: checkpoints, adapters, metrics and exported models."""
    names = ("*.safetensors", "*.gguf", "metrics.jsonl")
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for name in names
        for path in sorted((folder / "runs").rglob(name))
    }


# ---------------------------------------------------------------------------------------------------------- without GPU


def test_without_a_gpu_it_stops_before_anything_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path / "bin", monkeypatch, gpu=False)
    with session("garrulus_t4", tmp_path, {}, monkeypatch) as notebook:
        with pytest.raises(CellExecutionError, match="Runtime > Change runtime type > T4 GPU"):
            notebook.run_all()
        ran = [number for number in notebook.code if notebook.cells.cells[number].execution_count]
    assert ran == notebook.code[:2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"]


def test_nothing_before_the_gpu_is_asserted_installs_or_loads() -> None:
    sources = [cell.source for cell in read(FOLDER / "garrulus_t4.ipynb").cells if cell.cell_type == "code"]
    [asserts] = [number for number, source in enumerate(sources) if "nvidia-smi" in source]
    [installs] = [number for number, source in enumerate(sources) if "pip install" in source]
    assert asserts < installs
    for source in sources[: asserts + 1]:
        assert not any(line.startswith(("!", "%", "import qdpo")) for line in source.splitlines())


# ------------------------------------------------------------------------------------------------------- model and data


def test_every_cell_has_model_and_data_from_the_form(done: tuple[Session, Path]) -> None:
    notebook, folder = done
    record = json.loads((folder / "runs" / "garrulus" / "run.json").read_text())
    assert record["settings"]["model.name"].endswith("base")
    assert record["settings"]["data.name"].endswith("pairs.jsonl")
    told = {text: printed(notebook.cells.cells[notebook.find(text)]) for text in ("qdpo.plan(", "load_pairs(")}
    assert "150 rows" in told["load_pairs("]
    assert "base" in told["qdpo.plan("]
    export = json.loads((folder / "runs" / "garrulus" / "export" / "gguf" / "export.json").read_text())
    assert export["base"]["name"].endswith("base")


def test_no_cell_names_the_presets_model_or_data_itself() -> None:
    cells = [cell.source for cell in read(FOLDER / "garrulus_t4.ipynb").cells if cell.cell_type == "code"]
    for name in ("winogrande", "NeuralMarcoro", "garrulus-t4"):
        assert sum(name in source for source in cells) == 1


# --------------------------------------------------------------------------------------------------------------- again


def test_all_cells_again_in_any_order_write_nothing_anew(done: tuple[Session, Path]) -> None:
    notebook, folder = done
    before = written(folder)
    again = list(notebook.code)
    random.Random(0).shuffle(again)
    for number in again:
        notebook.run(number)
    assert written(folder) == before
    assert len([path for path in before if path.suffix == ".gguf"]) == 1
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["garrulus", "quickstart"]


def test_another_type_is_written_beside_the_first(done: tuple[Session, Path]) -> None:
    notebook, folder = done
    before = written(folder)
    notebook.change(OWN | {"QUANT": ["q8_0", "q6_k"]})
    notebook.run(notebook.find("run.export("))
    assert len([path for path in written(folder) if path.suffix == ".gguf"]) == 2
    assert before.keys() < written(folder).keys()
    notebook.change(OWN)


@pytest.mark.parametrize(
    "changed",
    [{"DATA": "others.jsonl"}, {"OVERRIDES": {**OWN["OVERRIDES"], "train.max_steps": 6}}],
    ids=["data", "steps"],
)
def test_a_finished_run_is_not_shown_as_one_of_other_settings(
    done: tuple[Session, Path], changed: dict[str, Any]
) -> None:
    notebook, folder = done
    before = written(folder)
    notebook.change(OWN | changed)
    notebook.run(notebook.find("def train_once"))
    with pytest.raises(CellExecutionError, match="give RUN another folder"):
        notebook.run(notebook.find("train_once(config, RUN"))
    assert written(folder) == before
    notebook.change(OWN)
    notebook.run(notebook.find("def train_once"))


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_own(tmp_path)
    pretend(tmp_path / "bin", monkeypatch, gpu=True)
    steps = {"train.max_steps": 60, "train.save_every": 5, "train.eval_every": 60, "samples.count": 0}
    with session("garrulus_t4", tmp_path, OWN | {"OVERRIDES": OWN["OVERRIDES"] | steps}, monkeypatch) as notebook:
        train = notebook.find("train_once(config, RUN")
        notebook.run(notebook.parameters)
        notebook.run(notebook.find("nvidia-smi"))  # imports shutil
        notebook.run(notebook.find("def train_once"))
        notebook.insert(INTERRUPT)
        with pytest.raises(CellExecutionError, match="was stopped"):
            notebook.run(train)
        record = tmp_path / "runs" / "garrulus" / "run.json"
        assert json.loads(record.read_text())["state"] == "stopped"
        said = notebook.run(train)
        assert "resuming from step-0000" in said
        assert json.loads(record.read_text())["state"] == "finished"
        steps_done = [json.loads(line)["step"] for line in (record.parent / "metrics.jsonl").read_text().splitlines()]
        assert max(steps_done) == 60


INTERRUPT = """
import os, signal, threading, time
from pathlib import Path

def interrupt():
    while not Path("runs/garrulus/checkpoints/step-000005").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
"""
"""What the kernel's interrupt does, once a checkpoint is there."""
