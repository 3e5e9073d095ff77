"""kill -9 at any moment costs at most the steps since the last checkpoint, and changes nothing of the result."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

import pytest
from faults.runs import (
    DROPOUT,
    SAVE_EVERY,
    World,
    assert_whole,
    at_any_moment,
    in_a_save,
    staging,
    steps_done,
    steps_saved,
    wait_for,
)

STEPS = 100
KILLS, KILLS_IN_A_SAVE = 5, 3
"""In each of the long test's ten parts: of 50 kills 30 are aimed at a save, and at least 20 hit one."""


def kill_and_resume(here: World, draw: random.Random, dropout: str, aimed: bool, steps: int) -> tuple[bool, int]:
    """One kill; returns whether it came inside a save, and how many steps were lost."""
    settings = (f"train.max_steps={steps}", *DROPOUT[dropout])
    straight = here.straight(*settings)
    folder = here.folder / "run"
    process = here.train(folder, *settings)
    if aimed:
        in_a_save(draw, folder, process, steps)
    else:
        at_any_moment(draw, folder, process, steps)
    process.send(signal.SIGKILL)
    code = process.wait()
    if code == 0:  # the run was quicker than the one that was left alone
        shutil.rmtree(folder)
        return kill_and_resume(here, draw, dropout, aimed, steps)
    assert code == 128 + signal.SIGKILL
    hit = any("step-" in name for name in staging(folder))
    lost = steps_done(folder) - max(steps_saved(folder), default=0)
    assert lost <= SAVE_EVERY
    resumed = here.resume(folder)
    assert resumed.wait() == 0, resumed.said()
    assert "resuming from" in resumed.said()
    assert_whole(folder, straight, steps)
    shutil.rmtree(folder)
    return hit, lost


@pytest.mark.parametrize("dropout", DROPOUT)
@pytest.mark.parametrize("aimed", [False, True], ids=["at any moment", "in a save"])
def test_a_killed_run_ends_with_the_adapter_of_one_left_alone(dropout: str, aimed: bool, here: World) -> None:
    kill_and_resume(here, random.Random(f"{dropout} {aimed}"), dropout, aimed, steps=40)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(5))
@pytest.mark.parametrize("dropout", DROPOUT)
def test_fifty_kills(dropout: str, part: int, here: World) -> None:
    draw = random.Random(f"{dropout} {part}")
    outcomes = [kill_and_resume(here, draw, dropout, n < KILLS_IN_A_SAVE, STEPS) for n in range(KILLS)]
    hits, worst = sum(hit for hit, _ in outcomes), max(lost for _, lost in outcomes)
    print(f"\ndropout {dropout}: {len(outcomes)} of {KILLS} resumed and equal; {hits} in a save; {worst} steps lost")
    assert hits >= 2


def test_a_run_killed_before_its_first_file_can_be_started_again(here: World, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = here.train(folder, "train.max_steps=5")
    wait_for(lambda: (folder / ".lock").is_file(), process)
    process.send(signal.SIGKILL)
    process.wait()
    (folder / "config.yaml").unlink(missing_ok=True)
    (folder / "run.json").unlink(missing_ok=True)
    assert here.resume(folder).wait() == 66
    again = here.train(folder, "train.max_steps=5")
    assert again.wait() == 0, again.said()
    assert steps_saved(folder) == [5]


def test_a_run_killed_between_its_first_two_files_can_be_resumed(here: World, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = here.train(folder, "train.max_steps=5")
    wait_for(lambda: (folder / "config.yaml").is_file(), process)
    process.send(signal.SIGKILL)
    process.wait()
    (folder / "run.json").unlink(missing_ok=True)
    again = here.resume(folder)
    assert again.wait() == 0, again.said()
    assert_whole(folder, here.straight("train.max_steps=5"), 5)
