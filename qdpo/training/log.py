"""Where the numbers of a run go: metrics.jsonl, the terminal, and experiment trackers."""

from __future__ import annotations

import json
import time
from pathlib import Path

from qdpo.files import append
from qdpo.hardware import GIB, Device, peak_memory
from qdpo.run.folder import METRICS
from qdpo.run.metrics import keep_until
from qdpo.training import parallel
from qdpo.training.stages.state import RunState
from qdpo.training.terminal import Terminal
from qdpo.training.trackers import Trackers


class MetricsFile:
    """metrics.jsonl, one JSON object a line.

    Args:
        path: the file.
        device: whose peak memory is logged.
    """

    def __init__(self, path: Path, device: Device) -> None:
        self.path = path
        self.device = device
        self.since = (time.monotonic(), 0)

    def begin(self, step: int, tokens: int) -> None:
        """Drop the lines of steps that a resumed run will do again.

        Args:
            step: optimizer steps done.
            tokens: trained on so far.
        """
        self.restart_clock(tokens)
        keep_until(self.path, step)

    def restart_clock(self, tokens: int) -> None:
        """Leave what was done since the last line, an evaluation, out of the training time."""
        self.since = time.monotonic(), tokens

    def measured(self, tokens: int) -> dict[str, float]:
        """Speed since the last call, and peak memory."""
        now = time.monotonic()
        then, before = self.since
        self.since = now, tokens
        return {
            "tokens_per_second": (tokens - before) / max(now - then, 1e-9),
            "peak_memory_gib": peak_memory(self.device) / GIB,
        }

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append a line; on the disk when this returns.

        Raises:
            ValueError: a value is not finite.
        """
        append(self.path, json.dumps({"step": step, **values}, allow_nan=False) + "\n")


class Log:
    """Takes what a run measures and puts it everywhere.

    Args:
        run: its directory, device and settings.
        steps: optimizer steps of the whole run.
    """

    def __init__(self, run: RunState, steps: int) -> None:
        self.file = MetricsFile(run.folder / METRICS, run.device)
        self.terminal = Terminal(steps) if parallel.is_first() else None
        self.trackers = Trackers(run) if parallel.is_first() else None

    def begin(self, step: int, tokens: int) -> None:
        """Begin at a step, after so many tokens."""
        self.file.begin(step, tokens)
        if self.trackers is not None:
            self.trackers.begin()
        if self.terminal is not None:
            self.terminal.begin(step)

    def moved(self, step: int, *, evaluating: bool) -> None:
        """A step was made, and an evaluation follows or not."""
        if self.terminal is not None:
            self.terminal.moved(step, evaluating=evaluating)

    def part(self, step: int, share: float) -> None:
        """A share of the step after `step` is done, from 0 to 1."""
        if self.terminal is not None:
            self.terminal.moved(step + share, evaluating=False)

    def training(self, step: int, values: dict[str, float], tokens: int) -> None:
        """The means of the steps since the last line."""
        self._everywhere(step, values | self.file.measured(tokens), "train")

    def heldout(self, step: int, values: dict[str, float]) -> None:
        """An evaluation, its keys with the prefix `eval_`."""
        self._everywhere(step, values, "held-out")

    def restart_clock(self, tokens: int) -> None:
        """Training goes on after an evaluation."""
        self.file.restart_clock(tokens)
        if self.terminal is not None:
            self.terminal.restart_clock()

    def _everywhere(self, step: int, values: dict[str, float], part: str) -> None:
        self.file.write(step, values)
        if self.terminal is not None:
            self.terminal.log(part, step, values)
        if self.trackers is not None:
            self.trackers.log(part, step, values)

    def close(self) -> None:
        """Leave the last state on the screen, and let the trackers finish."""
        if self.terminal is not None:
            self.terminal.close()
        if self.trackers is not None:
            self.trackers.close()
