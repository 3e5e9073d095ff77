"""A run goes into a folder of its own, and a folder that holds something else is never touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from training.tiny import Tiny, resolve_tiny

from qdpo.errors import InputMissingError, OutputError
from qdpo.run import folder as run_folder
from qdpo.run.schema import Record


def test_a_folder_that_is_absent_or_empty_is_taken(tmp_path: Path) -> None:
    assert run_folder.choose(str(tmp_path / "new" / "run"), "tiny") == tmp_path / "new" / "run"
    assert run_folder.choose(str(tmp_path), "tiny") == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_without_a_wish_the_folder_is_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_folder.choose(None, "tiny") == Path("runs/tiny")
    for name in ("tiny", "tiny-2"):
        Path("runs", name).mkdir(parents=True)
    assert run_folder.choose(None, "tiny") == Path("runs/tiny-3")


def test_a_folder_with_a_run_is_refused_with_the_way_to_continue(tmp_path: Path) -> None:
    run_folder.write_record(tmp_path, Record(schema=1))
    with pytest.raises(OutputError, match="holds a run already") as error:
        run_folder.choose(str(tmp_path), "tiny")
    assert "--resume" in (error.value.hint or "")


@pytest.mark.parametrize("name", ["thesis.tex", ".hidden"])
def test_a_foreign_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        run_folder.choose(str(tmp_path), "tiny")


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        run_folder.choose(str(tmp_path / "file"), "tiny")


def test_a_reopened_run_has_the_configuration_it_was_made_with(tiny: Tiny, tmp_path: Path) -> None:
    resolved = resolve_tiny(tiny, "train.learning_rate=5e-7", "loss.loss_type=ipo,sft", "data.columns.prompt=question")
    run_folder.create(tmp_path / "run", resolved)
    assert run_folder.reopen(tmp_path / "run").config == resolved.config


@pytest.mark.parametrize("content", ["", "{", "\x00", "[1, 2]"])
def test_a_broken_record_is_an_error_and_no_traceback(content: str, tmp_path: Path) -> None:
    (tmp_path / run_folder.RECORD).write_text(content)
    with pytest.raises(InputMissingError, match=r"run\.json"):
        run_folder.read_record(tmp_path)


def test_a_missing_record_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match=r"run\.json is missing"):
        run_folder.read_record(tmp_path)


def test_the_record_names_every_package_that_decides_results() -> None:
    versions = run_folder.versions()
    assert {"python", "torch", "transformers", "peft", "bitsandbytes", "trl"} <= versions.keys()
    assert all(versions.values())
