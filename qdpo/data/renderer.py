"""Rendering chat templates in a process that can be killed: 2 seconds, 1 MB of text, 512 MiB of memory.

One process serves a whole dataset, so a conversation costs microseconds; when a template hangs, the process is killed
and the next call starts another one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import struct
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO

from qdpo.data.pairs import Message
from qdpo.errors import DataError

SECONDS = 2.0
CHARACTERS = 1 << 20
MEMORY = 512 << 20
START_SECONDS = 60.0
"""For the process to start, on a machine that is busy."""


# The protocol of qdpo/data/sandbox.py, which is not imported: nothing of it runs in this process.
HEADER = struct.Struct(">I")
RESULT = struct.Struct(">cI")


class Refused(Exception):
    """The template cannot render one conversation; the text is the reason."""


class Renderer:
    """Renders conversations with one template.

    Args:
        template: Jinja source.
        variables: the tokenizer's special tokens by name.
        origin: where the template came from, for messages.
        seconds: the most that one conversation may take.
    """

    def __init__(self, template: str, variables: Mapping[str, str], origin: str, seconds: float = SECONDS) -> None:
        self.template, self.variables, self.origin, self.seconds = template, dict(variables), origin, seconds
        self.process: subprocess.Popen[bytes] | None = None
        self.buffer = bytearray()

    def render(self, jobs: Sequence[Sequence[Sequence[Message]]]) -> list[list[str | Refused]]:
        """Render prompts and completions.

        Args:
            jobs: each is (prompt, completion, ...), each of these a conversation's messages.

        Returns:
            For each job the text of its prompt, up to where the assistant begins to speak, then of prompt and each
            completion together. A conversation that the template refuses has the `Refused` in its place.

        Raises:
            DataError: the template is no template, takes too long, or breaks down.
        """
        if not jobs:
            return []
        try:
            if self.process is None:
                self._start()
            self._send([[[{"role": m.role, "content": m.content} for m in part] for part in job] for job in jobs])
            return [[self._answer() for _ in job] for job in jobs]
        except BaseException:
            # After anything but a complete exchange the pipes hold remains of it.
            self.close()
            raise

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            _end(self.process)
            self.process = None
            self.buffer.clear()

    def _start(self) -> None:
        script = Path(__file__).with_name("sandbox.py")
        self.process = subprocess.Popen(
            # -P: the script's own folder is not searched for modules
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C, and a notebook's interrupt, go to the whole group: they are for the run, which may go on
            start_new_session=True,
        )
        weakref.finalize(self, _end, self.process)
        self._send(
            {
                "template": self.template,
                "variables": self.variables,
                "memory": MEMORY,
                "characters": CHARACTERS,
            }
        )
        self._answer(START_SECONDS)

    def _send(self, value: object) -> None:
        data = json.dumps(value).encode()
        sink = self._pipe("stdin")
        try:
            sink.write(HEADER.pack(len(data)) + data)
            sink.flush()
        except BrokenPipeError as error:
            raise self._broken() from error

    def _answer(self, seconds: float | None = None) -> str | Refused:
        mark, size = RESULT.unpack(self._read(RESULT.size, seconds))
        text = self._read(size, seconds).decode("utf-8", "surrogatepass")
        if mark == b"!":
            raise DataError(f"the chat template ({self.origin}) is not valid Jinja: {text}", WAY_OUT)
        return text if mark == b"+" else Refused(text)

    def _read(self, size: int, seconds: float | None) -> bytes:
        descriptor = self._pipe("stdout").fileno()
        while len(self.buffer) < size:
            ready, _, _ = select.select([descriptor], [], [], seconds or self.seconds)
            if not ready:
                raise DataError(
                    f"the chat template ({self.origin}) takes longer than {seconds or self.seconds:g} s for one "
                    "conversation",
                    WAY_OUT,
                )
            data = os.read(descriptor, 1 << 20)
            if not data:
                raise self._broken()
            self.buffer += data
        result = bytes(self.buffer[:size])
        del self.buffer[:size]
        return result

    def _pipe(self, name: str) -> IO[bytes]:
        return getattr(self.process, name)

    def _broken(self) -> DataError:
        return DataError(
            f"the chat template ({self.origin}) ended the process that renders it: it needs more than "
            f"{MEMORY >> 20} MiB, or recurses without end",
            WAY_OUT,
        )


WAY_OUT = "choose another with data.template: zephyr, chatml, gemma-chatml, llama-3, mistral, none, or a file"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not flushed cannot be delivered
                pipe.close()
    process.wait()


@lru_cache(maxsize=4)
def renderer(template: str, variables: tuple[tuple[str, str], ...], origin: str) -> Renderer:
    """A renderer that is shared by all who use the same template with the same special tokens."""
    return Renderer(template, dict(variables), origin)
