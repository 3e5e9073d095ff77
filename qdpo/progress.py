"""How far long work is, and how long it will take; nothing at all about work that ends within three seconds.

On a terminal one line is drawn in place, elsewhere there is a line every 15 seconds. They come from a thread, so that
they come while a library's call blocks too. Of nested works the innermost that lasts is shown.
"""

from __future__ import annotations

import contextlib
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from qdpo import console

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

SECONDS_BEFORE_FIRST = 3.0
"""Work that ends sooner is not spoken of."""
SECONDS_BETWEEN_LINES = 15.0
"""Between two lines where there is no terminal; whatever else is said in between counts as one."""
SECONDS_BETWEEN_LOOKS = 0.1
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"

_lock = threading.Lock()
_works: list[Progress] = []
"""Works that are going on, the outermost first."""
_teller: _Teller | None = None
_displayed = False
"""Whether a live display shows `line()` itself."""


class Progress:
    """Counts work and tells how far it is, inside a `with` block.

    Args:
        what: the work, in a few words.
        total: how much there is of it, in `unit`; None where it cannot be counted.
        unit: what is counted, in the plural: `bytes`, `pairs`, `tensors`.
        expected_seconds: an estimate from elsewhere, said until the first piece is done.
    """

    def __init__(
        self, what: str, total: int | None, *, unit: str = "bytes", expected_seconds: float | None = None
    ) -> None:
        self.what, self.total, self.unit, self.expected = what, total, unit, expected_seconds
        self.done: float = 0
        self.began = time.monotonic()
        self.told = False

    def __enter__(self) -> Self:
        global _teller
        self.began = time.monotonic()
        with _lock:
            _works.append(self)
            if _teller is None:
                _teller = _Teller()
                _teller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _teller
        ended = None
        with _lock:
            _works.remove(self)
            if not _works:
                ended, _teller = _teller, None
        if ended is not None:
            ended.stop()

    @property
    def seconds(self) -> float:
        """Time since the work began."""
        return time.monotonic() - self.began

    def advance(self, n: float = 1) -> None:
        """Count `n` more as done."""
        self.done += n

    @property
    def seconds_left(self) -> float | None:
        """By the pieces that are done, before the first by what was expected; None where neither is known."""
        if self.total and self.done:
            return max(self.total - self.done, 0) * self.seconds / self.done
        return None if self.expected is None else max(self.expected - self.seconds, 0.0)

    def line(self) -> str:
        """What is shown: the work, how much of it is done, how fast, and the time that is left."""
        left = self.seconds_left
        remaining = "estimating" if left is None else f"about {clock(left)} left"
        if not self.total:
            words = [clock(self.seconds)]
            return f"{self.what}: {', '.join(words if left is None else [*words, remaining])}"
        words = [f"{min(self.done / self.total, 1):.0%}", _amount(self.done, self.total, self.unit)]
        if self.done:
            words.append(_rate(self.done / max(self.seconds, 1e-9), self.unit))
        return f"{self.what}: {', '.join([*words, remaining])}"


def waiting(what: str, expected_seconds: float | None = None) -> Progress:
    """Work that cannot be counted: its line has the seconds since it began.

    Args:
        what: is waited for, in a few words.
        expected_seconds: how long it will take, where that is known.
    """
    return Progress(what, None, expected_seconds=expected_seconds)


def line() -> str | None:
    """The line of the innermost work that lasts longer than three seconds; None where there is none."""
    with _lock:
        work = _shown()
    return None if work is None else work.line()


def leave_to(display: bool) -> None:
    """Whether a live display shows `line()` from now on, so that nothing is drawn or said here."""
    global _displayed
    _displayed = display


def clock(seconds: float) -> str:
    """Seconds in words: `42 s`, `3 min 05 s`, `2 h 10 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def _shown() -> Progress | None:
    return next((work for work in reversed(_works) if work.seconds >= SECONDS_BEFORE_FIRST), None)


def _amount(done: float, total: int, unit: str) -> str:
    if unit != "bytes":
        return f"{int(min(done, total)):,} of {total:,} {unit}"
    size, name = (1e9, "GB") if total >= 1e9 else (1e6, "MB")
    return f"{done / size:.1f} of {total / size:.1f} {name}"


def _rate(rate: float, unit: str) -> str:
    if unit == "bytes":
        return f"{rate / 1e6:,.0f} MB/s"
    if rate < 1:
        return f"{1 / rate:.1f} s each"
    return f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.1f} {unit}/s"


class _Teller(threading.Thread):
    """Shows the works that are going on until it is stopped."""

    def __init__(self) -> None:
        super().__init__(name="progress", daemon=True)
        self._ended = threading.Event()
        self._live: Live | None = None

    def run(self) -> None:
        # where nobody listens any more, whoever speaks next will notice
        with contextlib.suppress(OSError):
            while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
                if not _displayed:
                    self._look()

    def stop(self) -> None:
        self._ended.set()
        self.join()
        if self._live is not None:
            self._live.stop()

    def _look(self) -> None:
        with _lock:
            work = _shown()
        if work is None:
            return
        if console.can_redraw():
            self._open()
        elif console.silent_for() >= (SECONDS_BETWEEN_LINES if work.told else SECONDS_BEFORE_FIRST):
            work.told = True
            console.say(work.line())

    def _open(self) -> None:
        if self._live is not None:
            return
        self._live = console.live(self._drawn, transient=True)
        self._live.start()

    def _drawn(self) -> Text:
        from rich.text import Text

        from qdpo.redact import redact

        turn = SPINNER[int(time.monotonic() * 8) % len(SPINNER)]
        return Text(f"{turn} {redact(line() or '')}", no_wrap=True, overflow="ellipsis")
