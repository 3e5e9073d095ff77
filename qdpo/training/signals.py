"""SIGTERM and SIGINT: a run that is training ends its step, saves and stops; before that, and after, it stops at once.

Signals arrive in two places. Python's handler runs in the main thread, between two of its instructions: it notes the
signal, or ends a run that has nothing to save. A thread sees the same signal on a pipe even while the main thread is
inside a long kernel: it tells the user what happens, and ends the process at the second signal.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from qdpo import console
from qdpo.files import drop_staging

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE_SECONDS = 1.5
"""How long a run that has nothing to save may take to end by itself."""


class Stopped(SystemExit):
    """The run ends now because it was asked to; carries the exit code."""


class Stop:
    """Whether the run was asked to stop.

    Attributes:
        signal: the first signal that came, None while none has.
        patient: whether there is a step to end and a checkpoint to save; else a signal raises `Stopped`.
        ends_process: whether a second signal ends the process; else it raises `Stopped`, and so does each further one.
    """

    def __init__(self, ends_process: bool = True) -> None:
        self.signal: int | None = None
        self.patient = False
        self.ends_process = ends_process

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell reports it; 0 without a signal."""
        return 0 if self.signal is None else 128 + self.signal

    def arrived(self, number: int, frame: Any) -> None:
        """Python's handler."""
        first, self.signal = self.signal is None, self.signal or number
        if first and self.patient:
            return
        if first or not self.ends_process:
            self.patient = False
            raise Stopped(self.exit_code)


@contextlib.contextmanager
def watch(ends_process: bool = True) -> Iterator[Stop]:
    """Handle signals inside the block.

    A signal that is ignored (`nohup`, a job in the background of a script) stays ignored. Only the main thread of a
    process can handle signals; elsewhere none ever comes.

    Args:
        ends_process: whether the process may be ended, as the command line's is; else `Stopped` is raised at the most.
    """
    stop = Stop(ends_process)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    watched = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    hook_before, sys.unraisablehook = sys.unraisablehook, _ignored
    descriptor_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, stop.arrived) for number in watched}
    thread = threading.Thread(target=_attend, args=(reader, stop, watched), name="signals", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(descriptor_before)
        sys.unraisablehook = hook_before
        os.close(writer)
        thread.join()
        os.close(reader)


@contextlib.contextmanager
def insisting(stop: Stop) -> Iterator[None]:
    """What else goes wrong in the block once a signal has come is its doing, and the run is stopped, not broken.

    An import that the handler's exception interrupts, say, may end as an error of the library that imports.

    Raises:
        Stopped: instead of such an error.
    """
    try:
        yield
    except Exception as error:
        if stop.signal is None or stop.patient:
            raise
        raise Stopped(stop.exit_code) from error


def _ignored(event: sys.UnraisableHookArgs) -> None:
    """Say nothing of a `Stopped` that Python drops because the signal came inside a destructor; the thread insists."""
    if event.exc_type is not Stopped:
        sys.__unraisablehook__(event)


def _attend(reader: int, stop: Stop, watched: list[signal.Signals]) -> None:
    """What the thread does: a word at the first signal, the end at the second."""
    first = _next(reader, watched)
    if first is None:
        return
    name = signal.Signals(first).name
    if stop.patient:
        console.note(
            f"{name}: the step is finished and saved, then the run stops; "
            "another one stops it at once, at the price of the steps since the last checkpoint"
        )
        second = _next(reader, watched) if stop.ends_process else None
    else:
        console.note(f"{name}: stopping")
        if not stop.ends_process:
            return
        second = _next(reader, watched, GRACE_SECONDS) or (first if _is_open(reader) else None)
    if second is not None:
        _end(second)


def _next(reader: int, watched: list[signal.Signals], seconds: float | None = None) -> int | None:
    """The next signal that is watched; None when time is up or watching has ended."""
    while select.select([reader], [], [], seconds)[0]:
        arrived = os.read(reader, 1)
        if not arrived:
            return None
        if arrived[0] in watched:
            return arrived[0]
    return None


def _is_open(reader: int) -> bool:
    """Whether watching goes on: a pipe whose other end is closed is always readable."""
    return not select.select([reader], [], [], 0)[0]


def _end(number: int) -> None:
    with contextlib.suppress(OSError):
        drop_staging()
        console.note(f"{signal.Signals(number).name}: stopped at once")
        if sys.stderr.isatty():
            # A live display that is cut off leaves the terminal without a cursor.
            os.write(sys.stderr.fileno(), b"\x1b[?25h")
    os._exit(128 + number)
