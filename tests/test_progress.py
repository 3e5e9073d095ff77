"""How far long work is, told on a terminal and to a file: real processes, a real pseudo-terminal."""

from __future__ import annotations

import itertools
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from qdpo import progress
from qdpo.progress import Progress, clock, waiting

FASTER = """
import sys, time
from qdpo import console, progress
from qdpo.progress import Progress, waiting
progress.SECONDS_BEFORE_FIRST, progress.SECONDS_BETWEEN_LINES = 0.3, 0.5
"""


def listened(code: str, terminal: bool, seconds: float = 30.0, **environment: str) -> list[tuple[float, str]]:
    """Run Python code, and note what comes on its stderr and when, in seconds since its first word `go`."""
    reader, writer = pty.openpty() if terminal else os.pipe()
    env = {key: value for key, value in os.environ.items() if key != "CI"} | {"TERM": "xterm"} | environment
    command = [sys.executable, "-c", FASTER + code]
    process = subprocess.Popen(command, stderr=writer, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=env)
    os.close(writer)
    heard, deadline = [], time.monotonic() + seconds
    while time.monotonic() < deadline and select.select([reader], [], [], deadline - time.monotonic())[0]:
        try:
            data = os.read(reader, 1 << 16)
        except OSError:  # a pseudo-terminal whose other side is closed
            break
        if not data:
            break
        heard.append((time.monotonic(), data.decode()))
    os.close(reader)
    assert process.wait(5) == 0, "".join(text for _, text in heard)
    return heard


def everything(heard: list[tuple[float, str]]) -> str:
    return "".join(text for _, text in heard)


COUNTED = """
with Progress("reading", 40, unit="pairs") as work:
    for _ in range(40):
        time.sleep(0.05)
        work.advance(1)
console.say("end")
"""


def test_a_pipe_gets_a_line_now_and_then() -> None:
    lines = everything(listened(COUNTED, terminal=False)).splitlines()
    assert lines[-1] == "end"
    assert 3 <= len(lines) - 1 <= 5, lines
    shape = r"reading: \d+%, \d+ of 40 pairs, \d+(\.\d)? pairs/s, about \d s left"
    assert all(re.fullmatch(shape, line) for line in lines[:-1]), lines


def test_a_terminal_has_one_line_in_place_and_nothing_afterwards() -> None:
    heard = listened(COUNTED, terminal=True)
    text = everything(heard)
    assert "of 40 pairs" in text
    assert text.endswith("end\r\n")
    # erased: the cursor goes back to the line and clears it before the last word
    assert "\x1b[2K" in text[text.rindex("of 40 pairs") :]
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is not shown again"


@pytest.mark.parametrize("terminal", [False, True])
def test_short_work_is_not_spoken_of(terminal: bool) -> None:
    code = 'with Progress("reading", 4) as work:\n    time.sleep(0.1)\n    work.advance(4)\nconsole.say("end")\n'
    assert everything(listened(code, terminal)).splitlines() == ["end"]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_library_that_blocks_does_not_stop_the_line(terminal: bool) -> None:
    code = 'with waiting("asking a library"):\n    time.sleep(2)\n'
    heard = listened(code, terminal)
    times = [when for when, _ in heard]
    longest = max(later - earlier for earlier, later in itertools.pairwise(times))
    assert "asking a library: 1 s" in everything(heard)
    assert longest < 0.9
    # without the line, nothing at all is heard
    assert not listened("time.sleep(0.5)\n", terminal)


@pytest.mark.parametrize("terminal", [False, True])
def test_an_exception_leaves_nothing_on_the_line(terminal: bool) -> None:
    code = """
try:
    with waiting("asking a library"):
        time.sleep(0.8)
        raise ValueError
except ValueError:
    console.say("end")
time.sleep(0.8)
"""
    text = everything(listened(code, terminal))
    assert text.replace("\r", "").endswith("end\n")
    assert "Traceback" not in text


def test_what_is_said_meanwhile_stands_on_lines_of_its_own() -> None:
    code = """
with waiting("asking"):
    time.sleep(0.8)
    console.note("by the way")
    print("a library's own word", file=sys.stderr)
    time.sleep(0.5)
"""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", everything(listened(code, terminal=True)))
    lines = re.split(r"[\r\n]+", text)
    assert "note: by the way" in lines
    assert "a library's own word" in lines


def test_tokens_are_taken_out() -> None:
    code = 'with waiting("asking for hf_abcdefghijklmnopqrstuvwxyz"):\n    time.sleep(0.7)\n'
    for terminal in (False, True):
        text = everything(listened(code, terminal))
        assert "asking for ***" in text
        assert "hf_abc" not in text


def test_of_nested_works_the_innermost_that_lasts_is_told() -> None:
    code = """
with Progress("outer", 10, unit="parts") as outer:
    for _ in range(6):  # each too short to be spoken of
        with waiting("inner"):
            time.sleep(0.2)
        outer.advance(1)
    with waiting("long"):
        time.sleep(1)
"""
    lines = everything(listened(code, terminal=False)).splitlines()
    assert not [line for line in lines if line.startswith("inner")]
    assert [line.split(":")[0] for line in lines] == sorted((line.split(":")[0] for line in lines), reverse=True)
    assert {line.split(":")[0] for line in lines} == {"outer", "long"}


def test_what_others_say_counts_as_a_line() -> None:
    code = 'with waiting("asking"):\n    for i in range(8):\n        time.sleep(0.15)\n        console.say(str(i))\n'
    assert everything(listened(code, terminal=False)).split() == [str(i) for i in range(8)]


def test_a_live_display_shows_it_itself() -> None:
    code = 'progress.leave_to(display=True)\nwith waiting("asking"):\n    time.sleep(0.8)\n    print(progress.line())\n'
    assert not listened(code, terminal=True)


def test_an_interrupt_ends_it(tmp_path: object) -> None:
    code = """
import os, signal, threading
threading.Timer(0.8, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    with waiting("asking"):
        time.sleep(5)
except KeyboardInterrupt:
    console.say("end")
"""
    began = time.monotonic()
    assert everything(listened(code, terminal=True)).endswith("end\r\n")
    assert time.monotonic() - began < 4
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


class TestEstimate:
    def at(self, work: Progress, seconds: float, done: int = 0) -> str:
        work.began = time.monotonic() - seconds
        work.done = done
        return work.line()

    def test_before_the_first_piece_it_says_that_it_does_not_know(self) -> None:
        assert self.at(Progress("x", 200, unit="pairs"), 5) == "x: 0%, 0 of 200 pairs, estimating"

    def test_before_the_first_piece_it_says_what_was_expected(self) -> None:
        work = Progress("x", 200, unit="pairs", expected_seconds=65)
        assert self.at(work, 5) == "x: 0%, 0 of 200 pairs, about 1 min 00 s left"

    def test_then_it_goes_by_what_is_done(self) -> None:
        work = Progress("x", 14_500_000_000, expected_seconds=1)
        assert self.at(work, 10, 1_450_000_000) == "x: 10%, 1.4 of 14.5 GB, 145 MB/s, about 1 min 30 s left"

    def test_slow_pieces_are_told_by_their_length(self) -> None:
        assert self.at(Progress("x", 10, unit="layers"), 8, 2) == "x: 20%, 2 of 10 layers, 4.0 s each, about 32 s left"

    def test_more_than_all_is_all(self) -> None:
        assert "100%" in self.at(Progress("x", 10, unit="pairs"), 1, 12)

    def test_what_cannot_be_counted_says_how_long_it_lasts(self) -> None:
        assert self.at(waiting("x"), 12) == "x: 12 s"
        assert self.at(waiting("x", 60), 12) == "x: 12 s, about 48 s left"

    @pytest.mark.parametrize(("seconds", "words"), [(5, "5 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")])
    def test_clock(self, seconds: float, words: str) -> None:
        assert clock(seconds) == words


def test_nothing_goes_on_outside_of_work() -> None:
    with waiting("x"):
        assert progress.line() is None  # not yet
    assert progress.line() is None
