"""A served run for tests: a server in a thread, and a process that holds the run's lock as training does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asking import in_a_thread

from qdpo.report.serve import Server

HOLDS = """
import signal, sys
from pathlib import Path
from qdpo.run.lock import locked
caught = []
signal.signal(signal.SIGTERM, lambda *found: caught.append(found))
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
print(len(caught))
"""


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """A server of a run, in a thread."""
    with Server(folder, 0) as server, in_a_thread(server):
        yield server


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a run's lock until it reads a line, and then prints how many signals it was sent."""
    command = [sys.executable, "-c", HOLDS, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()
