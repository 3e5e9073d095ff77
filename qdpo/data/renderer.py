"""Rendering chat templates in a process that can be killed: 2 seconds, 1 MB of text, 512 MiB of memory.

One process serves a whole dataset, so a conversation costs microseconds; when a template hangs, the process is killed
and the next call starts another one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from functools import lru_cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from qdpo.data.named import WAY_OUT
from qdpo.data.pairs import Message
from qdpo.errors import DataError

SECONDS = 2.0
CHARACTERS = 1 << 20
MEMORY = 512 << 20
START_SECONDS = 60.0
"""For the process to start, on a machine that is busy."""


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
            return [[self._answer(self.seconds) for _ in job] for job in jobs]
        except BaseException:
            # After anything but a complete exchange the pipes hold remains of it.
            self.close()
            raise

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            _end(self.process, self.pipe)
            self.process = None

    def _start(self) -> None:
        # sandbox.py is run, not imported: nothing of it happens in this process
        script = Path(__file__).with_name("sandbox.py")
        self.pipe, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                # -P: the script's own folder is not searched for modules
                [sys.executable, "-P", str(script), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Ctrl-C, and a notebook's interrupt, go to the whole group: they are for the run, which may go on
                start_new_session=True,
            )
        weakref.finalize(self, _end, self.process, self.pipe)
        self._send({"template": self.template, "variables": self.variables, "memory": MEMORY, "characters": CHARACTERS})
        self._answer(START_SECONDS)

    def _send(self, value: object) -> None:
        try:
            self.pipe.send_bytes(json.dumps(value).encode())
        except OSError as error:
            raise self._broken() from error

    def _answer(self, seconds: float) -> str | Refused:
        try:
            if not self.pipe.poll(seconds):
                raise DataError(
                    f"the chat template ({self.origin}) takes longer than {seconds:g} s for one conversation", WAY_OUT
                )
            answer = self.pipe.recv_bytes().decode("utf-8", "surrogatepass")
        except (EOFError, OSError) as error:
            raise self._broken() from error
        mark, text = answer[0], answer[1:]
        if mark == "!":
            raise DataError(f"the chat template ({self.origin}) is not valid Jinja: {text}", WAY_OUT)
        return text if mark == "+" else Refused(text)

    def _broken(self) -> DataError:
        return DataError(
            f"the chat template ({self.origin}) ended the process that renders it: it needs more than "
            f"{MEMORY >> 20} MiB, or recurses without end",
            WAY_OUT,
        )


def _end(process: subprocess.Popen[bytes], pipe: Connection) -> None:
    process.kill()
    pipe.close()
    process.wait()


@lru_cache(maxsize=4)
def renderer(template: str, variables: tuple[tuple[str, str], ...], origin: str) -> Renderer:
    """A renderer that is shared by all who use the same template with the same special tokens."""
    return Renderer(template, dict(variables), origin)
