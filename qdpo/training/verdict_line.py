"""One line at each evaluation that says what the curves mean so far."""

from __future__ import annotations

from pathlib import Path

from qdpo import console
from qdpo.errors import QdpoError, first_line
from qdpo.run.record import read_run
from qdpo.verdicts.measured import evidence_of
from qdpo.verdicts.rules import judge


def say_verdict(folder: Path, step: int) -> None:
    """Judge a run by the files that it has written up to a step, and say it.

    Args:
        folder: the run directory.
        step: optimizer steps done.
    """
    try:
        verdict = judge(evidence_of(read_run(folder)))[0]
    except (QdpoError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        # a remark about a run is no reason to end it
        console.warn(f"no verdict at step {step}: {type(error).__name__}: {first_line(error)}")
        return
    say = console.warn if verdict.alarm else console.good if verdict.good else console.note
    say(f"step {step}, {verdict.line()}")
