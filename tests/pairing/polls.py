"""Files of answers for tests, a poll that is served in a thread, and the command in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asking import in_a_thread

from qdpo.pairing.answers import read_answers
from qdpo.pairing.poll import Poll
from qdpo.pairing.serve import Server


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The same read again."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write_answers(path: Path, prompts: int = 4, k: int = 2) -> Path:
    """Prompts, each with k answers, by run and base in turn."""
    answers = [
        [{"text": f"answer {n}.{i}", "by": ("run", "base")[i % 2], "ended": True} for i in range(k)]
        for n in range(prompts)
    ]
    return write_rows(path, [{"prompt": f"prompt {n}", "answers": found} for n, found in enumerate(answers)])


@contextmanager
def polled(file: Path, out: Path, seed: int = 42) -> Iterator[Server]:
    """A served poll, in a thread."""
    with Poll.opened(read_answers(str(file)), out, seed) as poll, Server(poll, 0) as server, in_a_thread(server):
        yield server


@contextmanager
def voting(file: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`qdpo pairs vote` in a process, and the address that it prints."""
    command = [sys.executable, "-m", "qdpo", "pairs", "vote", str(file), "--port", "0", "--no-browser", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()
