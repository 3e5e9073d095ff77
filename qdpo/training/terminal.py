"""What a run shows on the terminal or in a notebook: a live table of rewards under a progress bar, or plain lines.

On a terminal everything goes to stderr. The plain form has one line per logged step and per evaluation, made for
`grep`: the word after the step is `train` or `held-out`, and every value follows its name.
"""

from __future__ import annotations

import atexit
import math
import time
from typing import TYPE_CHECKING, Any

from rich import progress as bars
from rich.console import Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from qdpo import console, notebook, progress
from qdpo.progress import Progress
from qdpo.redact import redact
from qdpo.run.record import all_ties

if TYPE_CHECKING:
    from rich.live import Live

EVAL_PREFIX = "eval_"
MISSING = "n/a"
TIES = "ties"
"""Shown for the accuracy while policy and reference are equal and no pair can be won."""

NARROW = 66
"""Below this many columns the table drops the reward of each side and keeps the margin."""

METRICS = (
    ("loss", "loss", "{:.4f}"),
    ("chosen", "rewards/chosen", "{:+.3f}"),
    ("rejected", "rewards/rejected", "{:+.3f}"),
    ("accuracy", "rewards/accuracies", "{:.3f}"),
    ("margin", "rewards/margins", "{:+.3f}"),
)
"""Title, key and format of what the table and the lines show."""


class Terminal:
    """Shows progress and the latest metrics of training and of the held-out pairs.

    Whoever calls `begin` calls `close` in a `finally`; at the latest the interpreter's exit stops the live display.

    Args:
        steps: optimizer steps of the whole run.
        live: a live display or plain lines; None decides by the terminal.
    """

    def __init__(self, steps: int, live: bool | None = None) -> None:
        self.live = _can_redraw() if live is None else live
        self.steps = steps
        self.step = 0
        self.first_step = 0
        self.started: float | None = None
        self.rows: dict[str, tuple[int, dict[str, Any]]] = {}
        self._live: Live | notebook.Live | None = None
        self._plain: Progress | None = None
        self._bar = bars.Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=console.talk(),
            expand=True,
            # Evaluations make single steps slow; a longer window keeps the estimate calm.
            speed_estimate_period=300,
        )
        self._task = self._bar.add_task("training", total=None)

    def begin(self, step: int) -> None:
        """Start the display; a resumed run starts at its step."""
        self.step = self.first_step = step
        self.started = time.monotonic()
        self._bar.update(self._task, total=self.steps, completed=step)
        self._open()
        if not self.live:
            self._plain = Progress("training", self.steps - step, unit="steps")
            self._plain.__enter__()
        if not step:
            self._say_doing("evaluating")

    def moved(self, step: float, *, evaluating: bool) -> None:
        """Move the bar, to between two steps too, and say whether an evaluation follows."""
        self.step = int(step)
        self._bar.update(self._task, completed=step)
        if self._plain is not None:
            self._plain.done = step - self.first_step
        self._say_doing("evaluating" if evaluating else "")

    def restart_clock(self) -> None:
        """Training goes on after an evaluation; the one before the first step says nothing of how long steps take."""
        if self.step == self.first_step:
            self.started = time.monotonic()
            if self._plain is not None:
                self._plain.began = self.started
        self.moved(self.step, evaluating=False)

    def log(self, part: str, step: int, values: dict[str, Any]) -> None:
        """Show one line of metrics.

        Args:
            part: `train` or `held-out`.
            step: optimizer step.
            values: metrics, those of an evaluation with the prefix `eval_`.
        """
        values = {key.removeprefix(EVAL_PREFIX): value for key, value in values.items()}
        self.rows["start" if part == "held-out" and step == 0 else part] = (step, values)
        if self._live is not None:
            self._live.refresh()
        elif not self.live:
            console.talk().print(self.line(part, step, values), markup=False, soft_wrap=True)

    def close(self) -> None:
        """Stop the display; harmless when there is none."""
        if self._plain is not None:
            self._plain.__exit__(None, None, None)
            self._plain = None
        if self._live is None:
            return
        live, self._live = self._live, None
        atexit.unregister(self.close)
        live.stop()
        progress.leave_to(display=False)

    def line(self, part: str, step: int, values: dict[str, Any]) -> str:
        """The plain line of one logged step or evaluation.

        Args:
            part: `train` or `held-out`.
            step: optimizer step.
            values: metrics without the `eval_` prefix.
        """
        words = [f"step {step:>{len(str(self.steps))}}/{self.steps}", f"{part:<8}"]
        words += [f"{title} {_show(values, key, form):>7}" for title, key, form in METRICS]
        words += _extras(values)
        if part == "train" and (left := self._seconds_left(step)) is not None:
            words.append(f"eta {_clock(left)}")
        return "  ".join(words)

    def _seconds_left(self, step: int) -> float | None:
        if self.started is None or step <= self.first_step:
            return None
        return (time.monotonic() - self.started) / (step - self.first_step) * max(0, self.steps - step)

    def _open(self) -> None:
        if not self.live or self._live is not None:
            return
        if notebook.is_here():
            self._live = notebook.Live(self.render)
        else:
            self._live = console.live(self.render)
        # A display that nobody stops leaves the terminal without a cursor.
        atexit.register(self.close)
        progress.leave_to(display=True)
        self._live.start(refresh=True)

    def _say_doing(self, what: str) -> None:
        self._bar.update(self._task, description=what or "training")

    def render(self) -> RenderableType:
        """The table and the bar."""
        narrow = console.talk().width < NARROW
        parts: list[RenderableType] = [_table(self.rows, narrow)] if self.rows else []
        status = _status(self.rows.get("train", (0, {}))[1], self.rows.get("held-out", self.rows.get("start")))
        if status:
            parts.append(Text(status, style="dim", overflow="ellipsis", no_wrap=True))
        if (doing := progress.line()) is not None:
            parts.append(Text(redact(doing), overflow="ellipsis", no_wrap=True))
        return Group(*parts, self._bar)


def _can_redraw() -> bool:
    return notebook.is_here() or console.can_redraw()


def _table(rows: dict[str, tuple[int, dict[str, Any]]], narrow: bool) -> Table:
    shown = [metric for metric in METRICS if not narrow or metric[0] not in ("chosen", "rejected")]
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    for title, _, _ in shown:
        table.add_column(title, justify="right", no_wrap=True, min_width=7)
    for part, title, style in (("start", "held-out", "dim"), ("held-out", "held-out", "bold"), ("train", "train", "")):
        if part in rows:
            step, values = rows[part]
            cells = [_show(values, key, form) for _, key, form in shown]
            table.add_row(title, str(step), *cells, style=style)
    return table


def _status(train: dict[str, Any], heldout: tuple[int, dict[str, Any]] | None) -> str:
    words = _extras(train)
    nll = heldout[1].get("text_nll") if heldout else None
    if _finite(nll):
        words.append(f"text nll {nll:.3f}")
    return " · ".join(words)


def _extras(values: dict[str, Any]) -> list[str]:
    """What a line says besides rewards, as far as it was measured."""
    forms = (
        ("learning_rate", "lr {:.2e}"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
        ("peak_memory_gib", "{:.2f} GiB"),
        ("text_nll", "text_nll {:.4f}"),
    )
    return [form.format(values[key]) for key, form in forms if _finite(values.get(key))]


def _show(values: dict[str, Any], key: str, form: str) -> str:
    value = values.get(key)
    if key == "rewards/accuracies" and all_ties(values):
        return TIES
    if isinstance(value, bool) or not isinstance(value, int | float):
        return MISSING
    # Not-a-number is shown as it is: hiding it would hide why a run fails.
    return form.format(value)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
