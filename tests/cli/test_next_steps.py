"""What a run and an export name as next steps: three commands each, which the command line takes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from report.conftest import Run

from qdpo.cli import main as cli
from qdpo.cli.next_steps import after_export, after_training
from qdpo.export.formats import FORMATS


def commands(said: str) -> list[list[str]]:
    """The commands that were named, as words."""
    head, *lines = said.splitlines()
    assert head == "next:"
    assert len(lines) == 3
    return [shlex.split(line.partition("  # ")[0]) for line in lines]


def assert_taken(words: list[str]) -> None:
    if words[0] == "qdpo":
        parser, _, _ = cli._parser(words[1])
        parser.parse_args(words[1:])


def test_after_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my run").mkdir()
    Run(tmp_path / "my run").write()
    after_training(tmp_path / "my run")
    for words in commands(capsys.readouterr().err):
        assert str(tmp_path / "my run") in words
        assert_taken(words)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("verdict", ["passed", "lost", "cannot be told", "failed", None])
def test_after_an_export(format: str, verdict: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "my run" / "export" / format
    own.mkdir(parents=True)
    (own / "a.gguf").touch()
    for export in (own, tmp_path / "elsewhere"):
        after_export(tmp_path / "my run", export, format, verdict)
        found = commands(capsys.readouterr().err)
        for words in found:
            assert_taken(words)
        # nothing that did not pass is handed on to another program
        assert (found[0][0] == "qdpo") == (verdict != "passed")
        assert (found[2][1] == "push") == (export == own)
