"""How far an export is, and how long it will take."""

from __future__ import annotations

import time

from qdpo.console import is_interactive, say, talk

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts bytes and tells: in place on a terminal, a line now and then elsewhere.

    Args:
        what: the work, in a few words.
        total: bytes of it.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, max(total, 1)
        self.done = 0
        self.began = self._told = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the work began."""
        return time.monotonic() - self.began

    def advance(self, nbytes: int) -> None:
        """Count `nbytes` more as done."""
        self.done += nbytes
        now = time.monotonic()
        if now - self._told < (0.2 if is_interactive() else SECONDS_BETWEEN_LINES):
            return
        self._told = now
        left = (self.total - self.done) * self.seconds / max(self.done, 1)
        rate = self.done / max(self.seconds, 1e-9)
        line = f"{self.what}: {self.done / self.total:4.0%}, {rate / 1e6:.0f} MB/s, {_clock(left)} left"
        if is_interactive():
            talk().print(f"\r{line}   ", end="")
        else:
            say(line)

    def finish(self) -> None:
        """Clear the line on a terminal."""
        if is_interactive():
            talk().print("\r" + " " * 78 + "\r", end="")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
