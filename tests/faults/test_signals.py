"""SIGTERM and SIGINT save and stop; a second one stops at once; what was stopped goes on as if it never was."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults.runs import (
    DROPOUT,
    World,
    assert_whole,
    at_any_moment,
    staging,
    state_of,
    steps_done,
    steps_saved,
    wait_for,
)
from training.tiny import make_rows, write_rows

from qdpo.training.signals import Stopped, insisting, watch

STEPS = 100
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
NAMES = [number.name for number in CODES]


def stop_and_resume(here: World, draw: random.Random, number: signal.Signals, dropout: str, steps: int) -> float:
    """Stop a run at a random moment and resume it; returns the seconds that it took to stop."""
    settings = (f"train.max_steps={steps}", *DROPOUT[dropout])
    straight = here.straight(*settings)
    folder = here.folder / "run"
    process = here.train(folder, *settings)
    at_any_moment(draw, folder, process, steps)
    trained = bool(steps_done(folder))
    begin = time.monotonic()
    process.send(number)
    code, seconds = process.wait(), time.monotonic() - begin
    if state_of(folder) == "finished":  # the run was quicker than the one that was left alone
        shutil.rmtree(folder)
        return stop_and_resume(here, draw, number, dropout, steps)
    assert code == CODES[number], process.said()
    assert number.name in process.said()
    assert "Traceback" not in process.said()
    assert state_of(folder) == "stopped"
    assert staging(folder) == []
    assert not (folder / ".lock").exists()
    if trained:
        # nothing at all is lost
        assert steps_saved(folder)[-1] == steps_done(folder)
    resumed = here.resume(folder)
    assert resumed.wait() == 0, resumed.said()
    assert_whole(folder, straight, steps)
    shutil.rmtree(folder)
    return seconds


@pytest.mark.parametrize("number", CODES, ids=NAMES)
def test_a_stopped_run_ends_with_the_adapter_of_one_left_alone(number: signal.Signals, here: World) -> None:
    assert stop_and_resume(here, random.Random(number), number, "on", steps=40) < 10


@pytest.mark.soak
@pytest.mark.parametrize("dropout", DROPOUT)
@pytest.mark.parametrize("number", CODES, ids=NAMES)
def test_twenty_stops(number: signal.Signals, dropout: str, here: World) -> None:
    draw = random.Random(f"{number} {dropout}")
    seconds = [stop_and_resume(here, draw, number, dropout, STEPS) for _ in range(5)]
    print(f"\n{number.name}: {len(seconds)} of 5 saved, resumed and equal; the slowest took {max(seconds):.2f} s")
    assert max(seconds) < 10


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", CODES, ids=NAMES)
@pytest.mark.parametrize("after", ["imports", "pairs of"])
def test_a_signal_before_the_first_step_ends_the_command_at_once(
    number: signal.Signals, after: str, here: World, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "qdpo", "train", "--preset", str(here.tiny.preset), "--run-dir", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        if after == "imports":
            while not handles(process.pid, signal.SIGTERM):
                time.sleep(0.001)
            time.sleep(0.3)
        else:
            for line in process.stderr:
                if after in line:
                    break
        begin = time.monotonic()
        process.send_signal(number)
        said = process.stderr.read()
        process.wait(30)
    assert process.returncode == CODES[number], said
    assert time.monotonic() - begin < 5
    assert f"{number.name}: stopping" in said
    assert "Traceback" not in said
    if after != "imports":
        assert state_of(tmp_path / "run") == "stopped"
        assert not (tmp_path / "run" / ".lock").exists()


def broken_import() -> None:
    """An import, interrupted by a signal, of a library that makes an error of its own of whatever an import raises."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2)
    except Stopped as stopped:
        raise ModuleNotFoundError("Could not import module 'AutoTokenizer'") from stopped


def test_an_import_that_a_signal_breaks_is_a_stop_and_no_defect() -> None:
    with pytest.raises(Stopped) as caught, watch() as stop, insisting(stop):
        broken_import()
    assert caught.value.code == 143


class Interrupted:
    """Gets a signal while it is destroyed, where Python drops exceptions."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)


def test_a_signal_inside_a_destructor_shows_no_traceback_and_counts(capfd: pytest.CaptureFixture[str]) -> None:
    with watch() as stop:
        thing = Interrupted()
        del thing
        assert stop.exit_code == 143
    shown = capfd.readouterr().err
    assert "SIGTERM: stopping" in shown
    assert "Traceback" not in shown


@pytest.fixture(scope="module")
def long_steps(here: World) -> tuple[str, ...]:
    """Settings of a run whose steps take seconds."""
    rows = here.folder / "many.jsonl"
    write_rows(rows, make_rows(1500, seed=3))
    return (f"data.name={rows}", "train.pairs_per_step=1500", "train.num_train_epochs=9", "train.eval_every=100")


def test_a_second_signal_ends_a_run_within_a_second(here: World, long_steps: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = here.train(folder, *long_steps, "train.save_every=1")
    wait_for(lambda: steps_saved(folder) != [], process)
    saved = steps_saved(folder)
    time.sleep(0.2)
    process.send(signal.SIGINT)
    wait_for(lambda: "SIGINT" in process.said(), process)
    process.send(signal.SIGINT)
    begin = time.monotonic()
    assert process.wait() == 130
    assert time.monotonic() - begin < 1
    assert "the step is finished and saved" in process.said()
    assert "stopped at once" in process.said()
    assert steps_saved(folder) == saved, "the step was long enough for the second signal to come inside it"


def test_a_signal_that_is_ignored_stays_ignored(here: World, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qdpo", "train", "--preset", str(here.tiny.preset), "--run-dir", "run"]
    script = "trap '' TERM; exec \"$@\""
    with subprocess.Popen(
        ["bash", "-c", script, "bash", *command, "--dry-run"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


def test_time_alone_is_a_reason_to_save(here: World, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = ("train.max_steps=40", "train.save_every=1000", "train.keep=100")
    process = here.train(folder, *settings, "train.save_minutes=0.002")
    assert process.wait() == 0, process.said()
    steps = steps_saved(folder)
    assert len(steps) > 3
    assert steps[-1] == 40
    assert steps[0] < 39, "a checkpoint that neither save_every nor the end has asked for"
