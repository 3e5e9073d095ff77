"""A real kernel: the table redraws, the kernel's interrupt saves and stops, and the kernel goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from jupyter_client.manager import KernelManager
from training.tiny import Tiny

import qdpo


class Kernel:
    """A kernel in a folder, and what its cells have shown.

    Attributes:
        outputs: messages of the last cell.
    """

    def __init__(self, folder: Path) -> None:
        env = {**os.environ, "PYTHONPATH": str(Path(qdpo.__file__).parents[1])}
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(folder), env=env)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)
        self.outputs: list[dict[str, Any]] = []

    def begin(self, code: str) -> str:
        """Start a cell; returns its id."""
        self.outputs = []
        return str(self.client.execute(code))

    def look(self, cell: str, until: str | None = None) -> dict[str, Any]:
        """Wait until a text was shown, or (None) until the cell is done; returns its reply then."""
        end = time.monotonic() + 300
        while time.monotonic() < end:
            try:
                message = self.client.get_iopub_msg(timeout=1)
            except Empty:
                continue
            if message["parent_header"].get("msg_id") != cell:
                continue
            self.outputs.append(message)
            if until is not None and until in self.text():
                return {}
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return self._reply(cell)
        raise AssertionError(f"{until or 'the end'} never came: {self.text()}")

    def _reply(self, cell: str) -> dict[str, Any]:
        while True:
            message = self.client.get_shell_msg(timeout=30)
            if message["parent_header"].get("msg_id") == cell:
                return dict(message["content"])

    def run(self, code: str) -> dict[str, Any]:
        """Run a cell to its end."""
        return self.look(self.begin(code))

    def text(self) -> str:
        """What the cell has shown, errors too."""
        parts = []
        for message in self.outputs:
            content = message["content"]
            parts += [content.get("text", ""), *content.get("data", {}).values(), *content.get("traceback", [])]
        return "\n".join(map(str, parts))

    def count(self, kind: str) -> int:
        """Messages of a kind."""
        return sum(message["msg_type"] == kind for message in self.outputs)

    def close(self) -> None:
        """End the kernel."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    found = Kernel(tmp_path_factory.mktemp("kernel"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def long(tiny: Tiny) -> str:
    """A run that nobody waits for."""
    changes = {"train.max_steps": 100_000, "train.eval_every": 100_000, "train.save_every": 100_000}
    return f"qdpo.train({str(tiny.preset)!r}, {changes!r}, run_dir='long')"


def test_a_run_is_shown_as_one_display_that_redraws(kernel: Kernel, tiny: Tiny) -> None:
    changes = {"train.max_steps": 4, "train.eval_every": 2, "samples.count": 0}
    reply = kernel.run(f"import qdpo\nrun = qdpo.train({str(tiny.preset)!r}, {changes!r}, run_dir='short')\nrun")
    assert reply["status"] == "ok", kernel.text()
    assert kernel.count("display_data") == 1, kernel.text()
    assert kernel.count("update_display_data") >= 4
    shown = [m["content"]["data"]["text/html"] for m in kernel.outputs if m["msg_type"] == "update_display_data"]
    assert "4/4" in shown[-1]
    assert "held-out" in shown[-1]
    streams = {message["content"]["name"] for message in kernel.outputs if message["msg_type"] == "stream"}
    assert streams == {"stdout"}, kernel.text()
    assert "every adapter learns" in kernel.text()
    result = [m["content"]["data"] for m in kernel.outputs if m["msg_type"] == "execute_result"]
    assert result[0]["text/html"].count("data:image/png;base64,") == 3


def test_curves_are_shown(kernel: Kernel) -> None:
    assert kernel.run("files = run.plot()")["status"] == "ok"
    images = [m for m in kernel.outputs if "image/png" in m["content"].get("data", {})]
    assert len(images) == 3


def test_the_kernels_interrupt_saves_stops_and_leaves_the_kernel_alive(kernel: Kernel, long: str) -> None:
    cell = kernel.begin(f"import qdpo\n{long}")
    kernel.look(cell, until="tokens/s")  # a step is done
    time.sleep(1)
    kernel.manager.interrupt_kernel()
    reply = kernel.look(cell)
    assert (reply["status"], reply["ename"]) == ("error", "Interrupted")
    assert "resume=True" in reply["evalue"]
    assert "SIGINT: the step is finished and saved" in kernel.text()
    assert kernel.run("run = qdpo.Run.open('long'); step = run.summary['checkpoint']; print(run.state, step)")
    state, step = kernel.text().split()[-2:]
    assert state == "stopped"
    assert int(step) > 0
    # and on from there, in the same kernel
    changes = f"overrides={{'train.max_steps': {int(step) + 2}}}, allow_changes=['train.max_steps']"
    reply = kernel.run(f"print(qdpo.train(run_dir='long', resume=True, {changes}).state)")
    # the interrupt went to all of the kernel's processes; those that the run keeps are not to heed it
    assert reply["status"] == "ok", kernel.text()
    assert f"resuming from step-{int(step):06}" in kernel.text()
    assert "finished" in kernel.text()


def test_an_interrupt_before_there_is_anything_to_save_stops_at_once(kernel: Kernel, long: str) -> None:
    cell = kernel.begin(long.replace("'long'", "'early'"))
    kernel.look(cell, until="median tokens")
    kernel.manager.interrupt_kernel()
    reply = kernel.look(cell)
    assert (reply["status"], reply["ename"]) == ("error", "Interrupted")
    assert kernel.run("print(qdpo.Run.open('early').state)")["status"] == "ok"
    assert "stopped" in kernel.text()


def test_after_it_an_interrupt_is_the_kernels_own_again(kernel: Kernel) -> None:
    cell = kernel.begin("import time; print('asleep', flush=True)\nfor _ in range(600): time.sleep(0.1)")
    kernel.look(cell, until="asleep")
    kernel.manager.interrupt_kernel()
    assert kernel.look(cell)["ename"] == "KeyboardInterrupt"


def test_a_mistake_shows_its_hint_as_the_last_thing(kernel: Kernel) -> None:
    reply = kernel.run("qdpo.train('quickstat')")
    assert reply["ename"] == "ConfigError"
    assert "hint: " in reply["evalue"]
    assert "hint: " in reply["traceback"][-1]


SCRIPT = """
import os, signal, sys, threading, time
import qdpo

def twice():
    while not os.path.exists("run/metrics.jsonl") or len(open("run/metrics.jsonl").readlines()) < 4:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.{name})
    for _ in range({more}):
        os.kill(os.getpid(), signal.{name})

threading.Thread(target=twice, daemon=True).start()
try:
    {train}
except qdpo.Interrupted as stopped:
    print("stopped", stopped.run.state, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""


@pytest.mark.parametrize(("number", "more"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGINT, 2)])
def test_a_script_gets_the_stop_as_an_exception(number: signal.Signals, more: int, long: str, tmp_path: Path) -> None:
    code = SCRIPT.format(name=number.name, more=more, train=long.replace("'long'", "'run'"))
    env = {**os.environ, "PYTHONPATH": str(Path(qdpo.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "stopped stopped True\n"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / ".lock").exists()
    if not more:
        assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
