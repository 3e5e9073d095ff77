"""`qdpo report` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from report.conftest import Run

from qdpo.cli.main import main


def test_renders_a_run_that_is_still_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = Run(tmp_path)
    example.run |= {"state": "running", "result": None}
    folder = example.write()
    assert main(["report", "--run", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert "The run is not finished (state: running)" in (folder / "README.md").read_text().replace("**", "")
    assert "running, 120 of 120 steps" in (folder / "report.html").read_text()
    assert (folder / "plots" / "loss.png").is_file()


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--run", str(tmp_path)]) == 66
    assert "name a run directory" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
