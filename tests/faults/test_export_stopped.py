"""An export that is stopped or killed leaves nothing behind: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from export.toys import add_adapter, llama, load_4bit, save_base, save_run

from qdpo.files import STAGING_PREFIX, staged_folder, sweep_abandoned

SLOWLY = """
import sys, time
from qdpo.cli.main import main
import qdpo.export.folder as folder
rounded = folder.rounded
def slowly(*args, **options):
    {}
    return rounded(*args, **options)
folder.rounded = slowly
sys.exit(main(sys.argv[1:]))
"""
SLEEPS = "time.sleep(0.3)"
SWALLOWS = """
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            time.sleep(1)
        except BaseException:
            pass
"""
"""As a library that lets no exception through, or one long call into C."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny Llama, to export."""
    folder = tmp_path_factory.mktemp("exports")
    base = save_base(folder / "base", llama())
    return save_run(folder / "runs" / "tiny", base, add_adapter(load_4bit(base)))


@pytest.fixture
def start(run: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts an export and waits until its staging folder has a file."""
    begun = []

    def begin(how: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SLOWLY.format(how), "merge-export", "--run", str(run)]
        command += ["--format", "safetensors", "--no-verify"]
        begun.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        deadline = time.monotonic() + 120
        while not any(path.is_file() for folder in left(run) for path in folder.iterdir()):
            assert begun[-1].poll() is None, begun[-1].communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.wait()
    sweep_abandoned(run / "export")


def left(run: Path) -> list[Path]:
    return list((run / "export").glob(f"{STAGING_PREFIX}*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("how", [SLEEPS, SWALLOWS], ids=["sleeps", "swallows"])
def test_a_signal_ends_an_export_soon_and_leaves_nothing(
    number: signal.Signals, code: int, how: str, run: Path, start: Callable[[str], subprocess.Popen[str]]
) -> None:
    process = start(how)
    began = time.monotonic()
    process.send_signal(number)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == code, said
    assert time.monotonic() - began < 5
    assert left(run) == []
    assert number.name in said
    assert "Traceback" not in said
    assert not (run / "export" / "safetensors").exists()


def test_what_a_killed_export_left_is_swept_by_the_next_command_on_the_run(
    run: Path, start: Callable[[str], subprocess.Popen[str]]
) -> None:
    process = start(SLEEPS)
    listing = [sys.executable, "-m", "qdpo", "runs", str(run.parent)]
    # while it is being written, nobody takes it away
    assert subprocess.run(listing, capture_output=True, check=True)
    assert len(left(run)) == 1
    process.kill()
    process.communicate()
    assert len(left(run)) == 1
    said = subprocess.run(listing, capture_output=True, text=True, check=True).stderr
    assert "left by an export that was killed" in said
    assert left(run) == []


def test_a_folder_that_is_being_written_is_not_abandoned_whatever_its_name_says(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "final") as staging:
        (staging / "file").write_text("x")
        # the number in the name is of a process that is gone: the lock decides
        moved = staging.with_name(f"{STAGING_PREFIX}final-{2**22 + 1}")
        staging.rename(moved)
        assert sweep_abandoned(tmp_path) == []
        moved.rename(staging)
    assert (tmp_path / "final" / "file").read_text() == "x"


def test_a_number_that_another_process_has_by_now_protects_nothing(tmp_path: Path) -> None:
    (tmp_path / f"{STAGING_PREFIX}final-{os.getppid()}").mkdir()
    assert sweep_abandoned(tmp_path) == [f"{STAGING_PREFIX}final-{os.getppid()}"]


def test_an_export_that_was_moved_aside_is_put_back_or_dropped(tmp_path: Path) -> None:
    aside = tmp_path / f"{STAGING_PREFIX}old-gguf"
    aside.mkdir()
    (aside / "file").touch()
    assert sweep_abandoned(tmp_path) == [aside.name]
    assert (tmp_path / "gguf" / "file").exists()
    aside.mkdir()
    sweep_abandoned(tmp_path)
    assert not aside.exists()
    assert (tmp_path / "gguf" / "file").exists()
