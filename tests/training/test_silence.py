"""Nothing that lasts is silent: a run whose every stage is slow, on a pipe and on a pseudo-terminal."""

from __future__ import annotations

import itertools
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training.tiny import Tiny

SLOW = 2.5
"""Seconds that each stage takes longer."""
MOST = 2.0
"""Seconds of silence that are allowed, where work is spoken of after 0.4 s and then every 0.4 s."""

SCRIPT = f"""
import functools, sys, time
from qdpo import progress
progress.SECONDS_BEFORE_FIRST = progress.SECONDS_BETWEEN_LINES = 0.4
SAID = []
def slowed(owner, name):
    function = getattr(owner, name)
    @functools.wraps(function)
    def slow(*args, **options):
        if name not in SAID:  # once each
            SAID.append(name)
            time.sleep({SLOW})
        return function(*args, **options)
    setattr(owner, name, slow)
if sys.argv.pop(1) == "mute":
    progress._Teller._look = lambda self: None
import qdpo.data.prepare, qdpo.model.load, qdpo.model.weights, qdpo.engine.probe, qdpo.engine.gradient_check
import qdpo.run.checkpoint, qdpo.report.plots, qdpo.report.refresh, qdpo.training.recipe, qdpo.training.reference
import qdpo.training.samples, qdpo.training.stages.model, qdpo.training.invariants, qdpo.engine.attach
for owner, name in (
    (qdpo.data.prepare, "prepare"),
    (qdpo.model.load, "load_base"),
    (qdpo.engine.attach, "decide"),
    (qdpo.engine.gradient_check, "_compare"),
    (qdpo.training.invariants, "check_policy_is_reference"),
    (qdpo.training.reference, "_score"),
    (qdpo.training.samples, "greedy"),
    (qdpo.training.recipe.Recipe, "score_heldout"),
    (qdpo.training.recipe.Recipe, "step"),
    (qdpo.run.checkpoint, "save"),
    (qdpo.report.plots, "draw_plots"),
):
    slowed(owner, name)
from qdpo.cli.main import main
print("go", file=sys.stderr, flush=True)
code = main(sys.argv[1:])
assert len(SAID) == 11, SAID
sys.exit(code)
"""


def longest_silence(tiny: Tiny, folder: Path, *, terminal: bool, mute: bool = False) -> tuple[float, str]:
    """The longest time between two pieces on stderr from the first to the last, and all of it."""
    reader, writer = pty.openpty() if terminal else os.pipe()
    env = {key: value for key, value in os.environ.items() if key != "CI"} | {"TERM": "xterm", "COLUMNS": "160"}
    command = [sys.executable, "-c", SCRIPT, "mute" if mute else "told", "train", "--preset", str(tiny.preset)]
    command += ["--run-dir", str(folder), "--set", "train.max_steps=2", "--set", "packing.reference_cache=run"]
    process = subprocess.Popen(command, stderr=writer, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=env)
    os.close(writer)
    heard: list[float] = []
    said = b""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and select.select([reader], [], [], 60)[0]:
        try:
            data = os.read(reader, 1 << 16)
        except OSError:  # a pseudo-terminal whose other side is closed
            break
        if not data:
            break
        said += data
        if b"go" in said:
            heard.append(time.monotonic())
    os.close(reader)
    text = said.decode()
    assert process.wait(30) == 0, text
    return max(later - earlier for earlier, later in itertools.pairwise(heard)), text


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_no_stage_of_a_run_is_silent(terminal: bool, tiny: Tiny, tmp_path: Path) -> None:
    longest, said = longest_silence(tiny, tmp_path / "run", terminal=terminal)
    assert longest < MOST, said
    for work in ("reading and tokenising", "loading the base", "reference log-probabilities", "saving step", "samples"):
        assert work in said


def test_without_the_lines_it_would_be(tiny: Tiny, tmp_path: Path) -> None:
    longest, said = longest_silence(tiny, tmp_path / "run", terminal=False, mute=True)
    assert longest > SLOW, said
