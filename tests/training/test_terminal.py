"""The terminal display, driven by a made-up training loop."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pytest
from rich.console import Console

from qdpo import console
from qdpo.training import terminal
from qdpo.training.terminal import Terminal

TRAIN = {
    "loss": 0.5123,
    "rewards/chosen": 0.25,
    "rewards/rejected": -0.125,
    "rewards/accuracies": 0.8125,
    "rewards/margins": 0.375,
    "learning_rate": 5e-5,
    "tokens_per_second": 1234.5,
    "peak_memory_gib": 1.5,
}
HELDOUT = {f"eval_{key}": value for key, value in TRAIN.items() if "/" in key or key == "loss"} | {"eval_text_nll": 2.5}


class Loop:
    """Calls a display as a run does."""

    def __init__(self, display: Terminal, step: int = 0) -> None:
        self.display, self.step = display, step

    def begin(self) -> None:
        self.display.begin(self.step)

    def to(self, step: int, *, evaluating: bool = False) -> None:
        self.step = step
        self.display.moved(step, evaluating=evaluating)

    def log(self, values: dict[str, Any]) -> None:
        self.display.log("held-out" if "eval_loss" in values else "train", self.step, dict(values))

    def end(self) -> None:
        self.display.close()


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Console:
    """A terminal of 100 columns in memory, in place of stderr."""
    fake = Console(file=io.StringIO(), force_terminal=True, width=100, highlight=False, color_system=None)
    monkeypatch.setattr(console, "talk", lambda: fake)
    return fake


@pytest.fixture
def log_file(monkeypatch: pytest.MonkeyPatch) -> Console:
    """A file in place of stderr."""
    fake = Console(file=io.StringIO(), width=160, highlight=False, soft_wrap=True)
    monkeypatch.setattr(console, "talk", lambda: fake)
    return fake


def written(fake: Console) -> str:
    assert isinstance(fake.file, io.StringIO)
    return fake.file.getvalue()


def rendered(display: Terminal, width: int) -> list[str]:
    fake = Console(file=io.StringIO(), width=width, color_system=None)
    fake.print(display.render())
    return [line.rstrip() for line in written(fake).splitlines()]


def test_plain_lines(log_file: Console) -> None:
    loop = Loop(Terminal(200, live=False))
    loop.begin()
    loop.log(HELDOUT)
    loop.to(5)
    loop.log(TRAIN)
    loop.to(100)
    loop.log(HELDOUT)
    loop.end()
    lines = written(log_file).splitlines()
    assert len(lines) == 3, "one line per log"
    assert lines[0].startswith(
        "step   0/200  held-out  loss  0.5123  chosen  +0.250  rejected  -0.125  accuracy   0.812"
    )
    assert lines[1].startswith("step   5/200  train     loss  0.5123")
    assert "lr 5.00e-05  1,234 tokens/s  1.50 GiB  eta 0:00:" in lines[1]
    assert lines[2].endswith("text_nll 2.5000")
    assert len({line.index("margin") for line in lines}) == 1, "columns are aligned"
    assert "\x1b" not in written(log_file)


@pytest.mark.parametrize("value", [None, "text", True])
def test_missing_values_are_not_invented(log_file: Console, value: Any) -> None:
    loop = Loop(Terminal(200, live=False))
    loop.begin()
    loop.to(1)
    loop.log({"loss": math.nan, "rewards/chosen": value})
    line = written(log_file)
    assert re.search(r"loss +nan", line), "not-a-number is shown, not hidden"
    assert re.search(r"chosen +n/a", line)
    assert "tokens/s" not in line


def test_live_table(screen: Console) -> None:
    display = Terminal(200, live=True)
    loop = Loop(display)
    loop.begin()
    try:
        loop.log(HELDOUT)
        loop.to(50)
        loop.log(TRAIN)
        loop.log(HELDOUT | {"eval_loss": 0.4})
        lines = rendered(display, 100)
    finally:
        loop.end()
    assert lines[0].split() == ["step", "loss", "chosen", "rejected", "accuracy", "margin"]
    assert lines[1].split() == ["held-out", "0", "0.5123", "+0.250", "-0.125", "0.812", "+0.375"]
    assert lines[2].split()[:3] == ["held-out", "50", "0.4000"]
    assert lines[3].split()[:3] == ["train", "50", "0.5123"]
    assert lines[4] == "lr 5.00e-05 · 1,234 tokens/s · 1.50 GiB · text nll 2.500"
    assert "50/200" in lines[5]
    assert "eta" in lines[5]


def test_narrow_terminal_keeps_lines_whole(screen: Console) -> None:
    screen.width = 60
    display = Terminal(200, live=True)
    loop = Loop(display)
    loop.begin()
    loop.to(50)
    loop.log(TRAIN)
    loop.end()
    lines = rendered(display, 60)
    assert lines[0].split() == ["step", "loss", "accuracy", "margin"]
    assert len(lines) == 4
    assert all(len(line) <= 60 for line in lines)


def test_messages_appear_above_the_display(screen: Console) -> None:
    loop = Loop(Terminal(200, live=True))
    loop.begin()
    loop.to(1)
    loop.log(TRAIN)
    console.say("a message [bold]as it is[/bold]")
    loop.end()
    shown = written(screen)
    assert "a message [bold]as it is[/bold]" in shown
    assert shown.rindex("a message") < shown.rindex("training"), "the display is drawn again below it"


def test_close_gives_the_terminal_back(screen: Console) -> None:
    display = Terminal(200, live=True)
    loop = Loop(display)
    loop.begin()
    display.close()
    display.close()
    assert written(screen).rstrip().endswith("\x1b[?25h"), "the cursor is visible again"
    before = written(screen)
    loop.to(5)
    assert written(screen) == before, "nothing is drawn after close"


def test_resumed_run_starts_at_its_step(screen: Console) -> None:
    display = Terminal(200, live=True)
    loop = Loop(display, step=150)
    loop.begin()
    lines = rendered(display, 100)
    loop.end()
    assert "150/200" in lines[-1]


def test_evaluation_is_announced(screen: Console) -> None:
    display = Terminal(200, live=True)
    loop = Loop(display)
    loop.begin()
    loop.to(40, evaluating=True)
    during = rendered(display, 100)[-1]
    loop.to(40)
    after = rendered(display, 100)[-1]
    loop.end()
    assert during.startswith("evaluating")
    assert after.startswith("training")


@pytest.mark.parametrize(
    ("tty", "ci", "term", "live"),
    [(True, "", "xterm", True), (True, "true", "xterm", False), (False, "", "xterm", False), (True, "", "dumb", False)],
)
def test_live_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch, tty: bool, ci: str, term: str, live: bool) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: tty, raising=False)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(console, "talk", lambda: Console(file=stream))
    assert terminal.Terminal(200).live is live


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    fake = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(console, "talk", lambda: fake)
    loop = Loop(Terminal(200, live=True))
    loop.begin()
    loop.to(5)
    loop.log(TRAIN)
    loop.end()
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", written(fake)), "no colour codes"
    assert "train" in written(fake)
