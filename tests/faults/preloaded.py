"""The `qdpo` command as a process of its own, without paying for its imports every time.

A server process imports everything once and forks for each command. What it forks is a real process: it has its own
memory, is ended by real signals, and gives a real exit code.

with Server(folder) as server:
    process = server.start("train", "--preset", preset, "--run-dir", folder)
    process.send(signal.SIGKILL)
    process.wait()
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

PRELOADED = (
    "torch",
    "peft",
    "bitsandbytes",
    "datasets",
    "matplotlib.pyplot",
    "transformers.models.llama.modeling_llama",
    "qdpo.training.run",
    "qdpo.training.recipe",
    "qdpo.training.log",
    "qdpo.report.card",
    "qdpo.report.plots",
)


@dataclass
class Process:
    """A command that the server has started.

    Attributes:
        pid: its process id.
        stderr: the file that its talk goes to.
        server: who started it.
    """

    pid: int
    stderr: Path
    server: Server

    def send(self, number: int) -> None:
        """Send a signal to it."""
        os.kill(self.pid, number)

    def wait(self, seconds: float = 300) -> int:
        """Its exit code, as a shell counts it (128 + the signal that ended it)."""
        answer = self.server.ask({"wait": self.pid, "seconds": seconds})
        if answer["code"] is None:
            os.kill(self.pid, signal.SIGKILL)
            raise TimeoutError(f"process {self.pid} runs longer than {seconds} s:\n{self.said()}")
        return int(answer["code"])

    def said(self) -> str:
        """What it printed on stderr."""
        return self.stderr.read_text("utf-8", "replace")


class Server:
    """Starts commands by forking.

    Args:
        folder: where their output goes.
        environment: variables for every command.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.environment = {**os.environ, **(environment or {})}
        self.count = 0

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment
        )
        assert self._answer() == {"ready": True}
        return self

    def __exit__(self, *exception: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)

    def start(self, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> Process:
        """Start `qdpo ARGUMENTS`."""
        self.count += 1
        stderr = self.folder / f"stderr-{self.count}"
        request = {"start": [str(a) for a in arguments], "stderr": str(stderr), "environment": dict(environment or {})}
        return Process(self.ask(request)["pid"], stderr, self)

    def run(self, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Run `qdpo ARGUMENTS` to its end: the exit code and what it said."""
        process = self.start(*arguments, environment=environment)
        return process.wait(), process.said()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request to the server, and its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the server has died"
        return json.loads(line)


# ------------------------------------------------------------------------------------------------------- in the server


def serve() -> None:
    """Answer requests until stdin ends."""
    import importlib

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in PRELOADED:
        importlib.import_module(name)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            pid = os.fork()
            if pid == 0:
                answers.close()
                _become(request)
            answer: dict[str, Any] = {"pid": pid}
        else:
            answer = {"code": _wait(request["wait"], request["seconds"])}
        print(json.dumps(answer), file=answers, flush=True)


def _become(request: dict[str, Any]) -> None:
    """Be the command, in the forked process; never returns."""
    code = 255
    try:
        descriptor = os.open(request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(request["environment"])
        sys.argv = ["qdpo", *request["start"]]
        from qdpo.cli.main import main

        code = main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pid: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        time.sleep(0.005)
    return None


if __name__ == "__main__":
    serve()
