"""Hostile and odd names, as run, adapter and export: nothing is written anywhere but below what the name says."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from training.tiny import Tiny, resolve_tiny

from qdpo.cli.main import main
from qdpo.config.resolve import resolve
from qdpo.errors import ConfigError, InputMissingError, OutputError, QdpoError
from qdpo.export.source import load_run
from qdpo.run import folder as run_folder
from qdpo.run import lock

NAMES = {
    "parent": "..",
    "parent's parent": "../..",
    "sibling": "../sibling",
    "up and down": "a/../../sibling",
    "absolute": "/{outside}/new",
    "two slashes": "//{outside}/new",
    "home": "~",
    "below home": "~/new",
    "another's home": "~root/qdpo-test/new",
    "nobody's home": "~no-such-user/new",
    "NUL": "a\0b",
    "only NUL": "\0",
    "empty": "",
    "blank": "  ",
    "here": ".",
    "here again": "./.",
    "dots": "...",
    "CON": "CON",
    "nul": "nul",
    "aux with a suffix": "aux.yaml",
    "device": "/dev/null",
    "device as folder": "/dev/null/run",
    "standard output": "/dev/stdout",
    "process": "/proc/self/cwd/new",
    "256 bytes": "x" * 256,
    "256 bytes in 128 letters": "ü" * 128,
    "path of 6,000 bytes": "a/" * 3000,
    "line break": "a\nb",
    "carriage return": "a\rb",
    "escape sequence": "\x1b[2Ja",
    "link to a full folder": "link-to-full",
    "link to an empty folder": "link-to-empty",
    "below a link": "link-to-full/notes.txt",
    "link to nothing": "link-to-nothing",
    "division slash": "..∕..∕a",
    "full-width dots": "．．",
    "backslashes": "..\\..\\a",
    "drive letter": "C:\\a",
    "right to left": "a\u202egnp",
    "Cyrillic letters": "аdарtеr",
    "like an option": "--resume",
    "shell": "$(touch canary)`touch canary`",
    "percent": "%2e%2e%2fa",
    "URL": "file:///{outside}/new",
}


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder beside the working directory with everything that must not change; HOME is in it too."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside / "full", outside / "empty", outside / "home"):
        folder.mkdir(parents=True)
    for folder in (outside, outside / "full", outside / "home"):
        (folder / "notes.txt").write_text("mine")
    for name, target in {"full": "full", "empty": "empty", "nothing": "none"}.items():
        (inside / f"link-to-{name}").symlink_to(outside / target)
    monkeypatch.chdir(inside)
    monkeypatch.setenv("HOME", str(outside / "home"))
    return outside


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def meant(name: str) -> Path:
    """What the name says, taken literally."""
    folder, last = os.path.split(os.path.abspath(os.path.expanduser(name)))
    return Path("/" + os.path.realpath(folder).lstrip("/")) / last


def given(name: str, outside: Path) -> str:
    return name.replace("{outside}", str(outside).lstrip("/"))


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_as_a_run_directory(name: str, outside: Path, tiny: Tiny) -> None:
    name = given(name, outside)
    before = tree(outside.parent)
    resolved = resolve_tiny(tiny)
    refused: QdpoError | None = None
    try:
        folder = run_folder.choose(name, resolved.config.name)
        with lock.locked(folder):
            run_folder.create(folder, resolved)
    except QdpoError as error:
        refused = error
    if refused is not None:
        assert isinstance(refused, OutputError), refused
        assert refused.hint
        assert tree(outside.parent) == before
    else:
        place = meant(name)
        assert (place / "config.yaml").is_file(), "it is where the name says"
        try:
            new = {outside.parent / path for path in tree(outside.parent).keys() - before.keys()}
            assert all(path == place or place in path.parents or path in place.parents for path in new)
            assert {path: text for path, text in tree(outside.parent).items() if path in before} == before
        finally:
            shutil.rmtree(place)
            shutil.rmtree("/root/qdpo-test", ignore_errors=True)


PRESET = "name: {}\nmodel:\n  name: quickstart\ndata:\n  name: quickstart\n"
HARMLESS = {"nul", "aux.yaml", "link-to-full", "link-to-empty", "link-to-nothing"}
"""Good names: only Windows has other plans for the first two, and where a run would go there is no such link."""


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_as_the_name_of_a_preset_that_somebody_sent(name: str, outside: Path) -> None:
    (outside / "preset.yaml").write_text(PRESET.format(json.dumps(name)))
    if name in HARMLESS:
        assert run_folder.choose(None, resolve(str(outside / "preset.yaml")).config.name) == Path("runs") / name
        return
    with pytest.raises(ConfigError, match="name"):
        resolve(str(outside / "preset.yaml"))


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_as_the_name_in_a_run_that_somebody_sent(name: str, outside: Path, tiny: Tiny) -> None:
    run = outside / "full"
    (run / "adapter").mkdir()
    (run / "run.json").write_text(json.dumps({"name": name, "base": {"name": "x", "folder": str(tiny.model)}}))
    if name in HARMLESS:
        assert load_run(run).name == name
        return
    with pytest.raises(InputMissingError, match="is no name of a run"):
        load_run(run)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_as_an_export(name: str, outside: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    """An export without an adapter fails; what matters is what it has written by then, and that it is explained."""
    run = outside / "home" / "run"
    (run / "adapter").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"name": "a", "base": {"name": "x", "folder": str(tiny.model)}}))
    before = tree(outside.parent)
    code = main(["merge-export", "--run", str(run), "--format", "safetensors", f"--out={given(name, outside)}"])
    assert code in (65, 66, 73), capsys.readouterr().err
    assert "internal error" not in capsys.readouterr().err
    assert tree(outside.parent) == before


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_as_an_adapter(name: str, outside: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder is only read; none of them is one."""
    before = tree(outside.parent)
    from qdpo.model.lora import attach

    config = resolve_tiny(tiny).config
    from training.tiny import make_model

    with pytest.raises(QdpoError):
        attach(make_model("llama"), config.lora, 1, given(name, outside))
    assert tree(outside.parent) == before


def test_there_are_forty_names() -> None:
    assert len(NAMES) >= 40


def test_a_run_directory_whose_parts_lead_out_of_it_is_not_continued(outside: Path, tiny: Tiny) -> None:
    folder = run_folder.choose("run", "tiny")
    run_folder.create(folder, resolve_tiny(tiny))
    (folder / "metrics.jsonl").symlink_to(outside / "notes.txt")
    with pytest.raises(OutputError, match=r"is a link to .*outside of"):
        run_folder.existing("run")
    (folder / "metrics.jsonl").unlink()
    (folder / "checkpoints").symlink_to(outside / "empty")
    assert main(["train", "--run-dir", "run", "--resume"]) == 73
    (folder / "checkpoints").unlink()
    (folder / "checkpoints").symlink_to("elsewhere-inside")
    assert run_folder.existing("run") == Path("run")
    assert (outside / "notes.txt").read_text() == "mine"
    assert list((outside / "empty").iterdir()) == []


def test_an_export_folder_that_leads_out_of_its_run_is_refused(outside: Path, tiny: Tiny) -> None:
    run = Path("run")
    (run / "adapter").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"name": "a", "base": {"name": "x", "folder": str(tiny.model)}}))
    (run / "export").symlink_to(outside / "empty")
    assert main(["merge-export", "--run", "run", "--format", "safetensors"]) == 73
    assert list((outside / "empty").iterdir()) == []


def test_numbered_folders_step_over_links_too(outside: Path) -> None:
    Path("runs").mkdir()
    Path("runs/tiny").symlink_to(outside / "none")
    assert run_folder.choose(None, "tiny") == Path("runs/tiny-2")
