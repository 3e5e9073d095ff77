"""`--mirror`: a second copy that is whole or absent, can be resumed, and never stands in the way of training."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from faults.mounts import mounted
from faults.runs import (
    SAVE_EVERY,
    Straight,
    World,
    assert_whole,
    at_any_moment,
    staging,
    state_of,
    steps_saved,
    wait_for,
)

from qdpo.errors import OutputError, UsageError
from qdpo.files import manifest_problems, sha256_file
from qdpo.training import mirror as module
from qdpo.training.mirror import Mirror

STEPS = 40


@pytest.fixture(scope="module")
def straight(here: World) -> Straight:
    return here.straight(f"train.max_steps={STEPS}")


def files(folder: Path) -> dict[str, str]:
    """Every file below a folder with its SHA-256, locks aside."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): sha256_file(path) for path in found}


def test_a_mirror_is_the_run_again(here: World, tmp_path: Path) -> None:
    run, copy = tmp_path / "run", tmp_path / "drive" / "copy"
    process = here.train(run, f"train.max_steps={STEPS}", more=("--mirror", copy))
    assert process.wait() == 0, process.said()
    assert f"mirror {copy}: " in process.said()
    assert files(copy) == files(run)


def test_a_run_whose_machine_is_gone_goes_on_from_its_mirror(here: World, straight: Straight, tmp_path: Path) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy"
    process = here.train(run, f"train.max_steps={STEPS}", more=("--mirror", copy))
    wait_for(lambda: steps_saved(copy) != [], process)
    at_any_moment(random.Random(1), run, process, STEPS // 2)
    process.send(signal.SIGKILL)
    process.wait()
    reached = steps_saved(run)[-1]
    shutil.rmtree(run)
    for step in steps_saved(copy):
        assert manifest_problems(copy / "checkpoints" / f"step-{step:06d}") == []
    # at most the checkpoint that was being copied, and one that came meanwhile, are missing
    assert reached - steps_saved(copy)[-1] <= 3 * SAVE_EVERY
    resumed = here.resume(copy)
    assert resumed.wait() == 0, resumed.said()
    assert_whole(copy, straight, STEPS)


def test_a_resumed_run_goes_on_with_its_mirror(here: World, straight: Straight, tmp_path: Path) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy"
    process = here.train(run, f"train.max_steps={STEPS}", more=("--mirror", copy))
    wait_for(lambda: steps_saved(copy) != [], process)
    process.send(signal.SIGTERM)
    assert process.wait() == 143
    assert state_of(copy) == "stopped"
    assert steps_saved(copy)[-1] == steps_saved(run)[-1]
    resumed = here.resume(run, "--mirror", copy)
    assert resumed.wait() == 0, resumed.said()
    assert files(copy) == files(run)
    assert_whole(copy, straight, STEPS)


def test_a_mirror_that_is_full_is_a_warning(here: World, straight: Straight, tmp_path: Path) -> None:
    with mounted(tmp_path / "drive", "300k") as drive:
        process = here.train(tmp_path / "run", f"train.max_steps={STEPS}", more=("--mirror", drive.folder / "copy"))
        assert process.wait() == 0, process.said()
        assert "warning: the mirror" in process.said()
        assert "the disk is full: cannot write" in process.said()
        assert "training goes on" in process.said()
        for step in steps_saved(drive.folder / "copy"):
            assert manifest_problems(drive.folder / "copy" / "checkpoints" / f"step-{step:06d}") == []
        assert staging(drive.folder) == []
    assert_whole(tmp_path / "run", straight, STEPS)


def test_a_mirror_that_vanishes_is_a_warning_and_nothing_is_written_in_its_place(
    here: World, straight: Straight, tmp_path: Path
) -> None:
    with mounted(tmp_path / "drive", "32m") as drive:
        copy = drive.folder / "copy"
        process = here.train(tmp_path / "run", f"train.max_steps={STEPS}", more=("--mirror", copy))
        wait_for(lambda: steps_saved(copy) != [], process)
        subprocess.run(["umount", "--lazy", str(drive.folder)], check=True)
        assert process.wait() == 0, process.said()
        assert list(drive.folder.iterdir()) == []
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(drive.folder)], check=True)
    assert f"warning: the mirror {copy} failed: {copy} has vanished" in process.said()
    assert_whole(tmp_path / "run", straight, STEPS)


def test_a_slow_mirror_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slowly(source: Path, target: Path) -> None:
        time.sleep(0.5)
        copy_folder(source, target)

    copy_folder = module._copy_folder
    monkeypatch.setattr(module, "_copy_folder", slowly)
    mirror = a_mirror(tmp_path)
    for step in (1, 2, 3):
        (mirror.source / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    begin = time.monotonic()
    for _ in range(100):
        mirror.update()
    assert time.monotonic() - begin < 0.3
    mirror.close(0.1)
    assert "was not ready after 0 s" in capsys.readouterr().err
    mirror.close(20)
    assert "3 checkpoints copied" in capsys.readouterr().err
    assert len(list((mirror.folder / "checkpoints").iterdir())) == 3


def test_a_damaged_checkpoint_is_not_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mirror = a_mirror(tmp_path)
    folder = tmp_path / "step-000001"
    folder.mkdir()
    (folder / "rng.json").write_text("{}")
    (folder / "manifest.json").write_text('{"schema": 1, "files": {"rng.json": {"bytes": 2, "sha256": "0"}}}')
    (mirror.source / "checkpoints").mkdir()
    # as a checkpoint appears: all at once, since the mirror's thread is looking already
    folder.rename(mirror.source / "checkpoints" / folder.name)
    mirror.close(20)
    assert "is not what was copied: rng.json does not match its SHA-256" in capsys.readouterr().err
    assert list((mirror.folder / "checkpoints").iterdir()) == []


def a_mirror(tmp_path: Path) -> Mirror:
    """The mirror of a run that has nothing but its record."""
    source = tmp_path / "run"
    source.mkdir()
    (source / "run.json").write_text(json.dumps({"id": "1"}))
    mirror = Mirror(source, tmp_path / "copy")
    mirror.open("1")
    return mirror


def test_places_that_cannot_be_a_mirror(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"id": "1"}))
    for place in (run, run / "copy", tmp_path):
        with pytest.raises(UsageError, match="lie in each other"):
            Mirror(run, place).open("1")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match="is not empty and no copy of this run"):
        Mirror(run, foreign).open("1")
    another = tmp_path / "another"
    another.mkdir()
    (another / "run.json").write_text(json.dumps({"id": "2"}))
    with pytest.raises(OutputError) as caught:
        Mirror(run, another).open("1")
    assert "--resume" in str(caught.value.hint)
    assert (foreign / "thesis.tex").read_text() == "mine"
