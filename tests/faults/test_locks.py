"""One run in one directory: the second is turned away, a dead one's lock is not in the way; clocks do not matter."""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.mounts import mounted
from faults.preloaded import Process
from faults.runs import SETTINGS, World, assert_whole, state_of, steps_saved, wait_for

from qdpo.errors import BusyError
from qdpo.run.lock import FILE, Holder, locked, refuse_if_busy

STEPS = 40


@pytest.fixture
def running(here: World, tmp_path: Path) -> Iterator[Process]:
    """A run in `tmp_path/run` that has saved once and has long to go."""
    process = here.train(tmp_path / "run", "train.max_steps=100000")
    wait_for(lambda: steps_saved(tmp_path / "run") != [], process)
    yield process
    process.send(signal.SIGKILL)
    process.wait()


def qdpo(*arguments: str | Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run the command as a user does, imports and all; also the seconds that it computed.

    It waits for nothing, so these are what it takes on a machine that does nothing else.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "qdpo", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("how", ["resume", "new"])
def test_a_second_run_in_the_same_directory_is_turned_away_within_a_second(
    how: str, running: Process, here: World, tmp_path: Path
) -> None:
    new = ["--preset", here.tiny.preset] if how == "new" else ["--resume"]
    attempts = [qdpo("train", *new, "--run-dir", tmp_path / "run") for _ in range(3)]
    for done, _ in attempts:
        assert done.returncode == 75, done.stderr
        assert f"error: process {running.pid} works in {tmp_path / 'run'}" in done.stderr
        assert "hint: wait for it to end, or choose another --run-dir" in done.stderr
    assert min(seconds for _, seconds in attempts) < 1
    assert state_of(tmp_path / "run") == "running"


def test_the_lock_of_a_killed_run_is_taken_over(here: World, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = here.train(folder, f"train.max_steps={STEPS}")
    wait_for(lambda: steps_saved(folder) != [], process)
    process.send(signal.SIGKILL)
    process.wait()
    assert json.loads((folder / FILE).read_text())["pid"] == process.pid
    resumed = here.resume(folder)
    assert resumed.wait() == 0
    assert f"the lock of process {process.pid}, which is gone" in resumed.said()
    assert_whole(folder, here.straight(f"train.max_steps={STEPS}"), STEPS)


def test_whose_lock_is_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    me = Holder.this_process()
    assert (me.pid, me.host) == (os.getpid(), platform.node())
    assert me.is_alive()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not Holder(ended.pid, me.host, me.boot).is_alive()
    assert not Holder(me.pid, me.host, "another boot").is_alive()

    for content in (json.dumps(Holder(me.pid, me.host, "another boot").__dict__), "", "{", "[]"):
        (tmp_path / FILE).write_text(content)
        with locked(tmp_path):
            assert Holder.parse((tmp_path / FILE).read_text()) == me
        assert not (tmp_path / FILE).exists()
    assert capsys.readouterr().err.count("which is gone") == 1


def test_another_machine_s_lock_is_left_to_the_user(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"pid": 7, "host": "elsewhere", "boot": "x"}))
    with pytest.raises(BusyError, match="process 7 on elsewhere") as caught, locked(tmp_path):
        pass
    assert f"remove {tmp_path / FILE}" in str(caught.value.hint)


def test_a_lock_excludes_and_ends(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(BusyError), locked(tmp_path):
            pass
        with pytest.raises(BusyError):
            refuse_if_busy(tmp_path)
    refuse_if_busy(tmp_path)
    with locked(tmp_path):
        pass


def test_processes_that_start_together_have_one_winner_at_a_time(tmp_path: Path) -> None:
    """Each that gets in writes its name, waits, and reads it back; two at once would read the other's."""
    program = (
        "import os, pathlib, sys, time\n"
        "from qdpo.errors import BusyError\n"
        "from qdpo.run.lock import locked\n"
        "folder, held = pathlib.Path(sys.argv[1]), 0\n"
        "until = time.monotonic() + 1.5\n"
        "while time.monotonic() < until:\n"
        "    try:\n"
        "        with locked(folder):\n"
        "            (folder / 'name').write_text(str(os.getpid()))\n"
        "            time.sleep(0.001)\n"
        "            assert (folder / 'name').read_text() == str(os.getpid())\n"
        "            held += 1\n"
        "    except BusyError:\n"
        "        time.sleep(0.0003)\n"
        "print(held)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    held = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sum(held) > 20


@pytest.mark.parametrize("how", ["new", "resume"])
def test_a_directory_that_cannot_be_written_to(how: str, here: World, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "8m") as disk:
        folder = disk.folder / "run"
        if how == "resume":
            process = here.train(folder, "train.max_steps=10")
            assert process.wait() == 0, process.said()
        disk.make_read_only()
        done, _ = qdpo(
            "train", *(["--resume"] if how == "resume" else ["--preset", here.tiny.preset]), "--run-dir", folder
        )
        assert done.returncode == 73, done.stderr
        assert "Read-only file system" in done.stderr
        assert str(folder) in done.stderr
        assert "hint: choose a folder that you may write to" in done.stderr


def test_a_clock_that_jumps_changes_nothing(here: World, tmp_path: Path) -> None:
    """The wall clock of the process goes back and forth by years at every look; durations come from another clock."""
    jumps = tmp_path / "sitecustomize.py"
    jumps.write_text(
        "import random, time\n"
        "real, draw = time.time, random.Random(1)\n"
        "time.time = lambda: real() + draw.uniform(-1e8, 1e8)\n"
    )
    # With the stored reference of the run that it is compared with: runs of other lengths round in other passes.
    environment = {
        **here.server.environment,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    }
    folder = tmp_path / "run"
    overrides = [word for setting in (*SETTINGS, f"train.max_steps={STEPS}") for word in ("--set", setting)]
    command = [sys.executable, "-m", "qdpo", "train", "--preset", here.tiny.preset, "--run-dir", folder, *overrides]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_whole(folder, here.straight(f"train.max_steps={STEPS}"), STEPS)
    assert 0 < json.loads((folder / "run.json").read_text())["result"]["seconds"] < 3600
    speeds = [
        json.loads(line).get("tokens_per_second", 1) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert all(0 < speed < 1e7 for speed in speeds)
