"""Faults put in on purpose: a rehearsal that would not see them proves nothing."""

from __future__ import annotations

from collections.abc import Callable

FAULTS: dict[str, Callable[[], None]] = {}
