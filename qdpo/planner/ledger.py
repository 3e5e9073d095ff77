"""A pass with sizes in the place of tensors: what is held, what is there for a moment, and the highest level."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Ledger:
    """Counts bytes as the engine takes and returns them.

    Attributes:
        level: bytes held now.
        peaks: highest level of each phase, in the order in which phases began.
        kinds: of what the level was made at the highest of all, by kind.
    """

    def __init__(self) -> None:
        self.level = 0.0
        self.peaks: dict[str, float] = {}
        self.kinds: dict[str, float] = {}
        self._held: dict[str, float] = {}
        self._phase = ""
        self._kind = "activations"
        self._highest = -1.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens inside counts for this phase."""
        before, self._phase = self._phase, name
        self.peaks.setdefault(name, self.level)
        self._note(0)
        try:
            yield
        finally:
            self._phase = before

    @contextmanager
    def kind(self, name: str) -> Iterator[None]:
        """What is taken inside is of this kind."""
        before, self._kind = self._kind, name
        try:
            yield
        finally:
            self._kind = before

    def hold(self, size: float) -> None:
        """Take bytes and keep them."""
        self.level += size
        self._held[self._kind] = self._held.get(self._kind, 0.0) + size
        self._note(0)

    def drop(self, size: float) -> None:
        """Return bytes."""
        self.level -= size
        self._held[self._kind] = self._held.get(self._kind, 0.0) - size

    def briefly(self, size: float) -> None:
        """Take bytes and return them at once."""
        self._note(size)

    def _note(self, extra: float) -> None:
        total = self.level + extra
        if self._phase:
            self.peaks[self._phase] = max(self.peaks.get(self._phase, 0.0), total)
        if total > self._highest:
            self._highest = total
            self.kinds = dict(self._held)
            self.kinds[self._kind] = self.kinds.get(self._kind, 0.0) + extra
