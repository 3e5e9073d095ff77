"""`qdpo explain`: what a run's curves say, and what to change."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "Say what a run's curves mean, with the numbers that each finding rests on and the setting to change."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("--run", metavar="DIR", type=Path, required=True, help="the run directory, finished or not")
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON")


def run(args: argparse.Namespace) -> int:
    """Judge a run and print the verdicts."""
    from dataclasses import asdict

    from qdpo.api.run import Run
    from qdpo.console import out

    verdicts = Run(args.run.expanduser()).verdicts()
    if args.json:
        out().print_json(data=[asdict(verdict) for verdict in verdicts])
        return 0
    for verdict in verdicts:
        out().print(f"{verdict.kind}{' (alarm)' if verdict.alarm else ''}", markup=False, style="bold")
        lines = [verdict.says, f"change: {verdict.change}" if verdict.change else "", f"source: {verdict.source}"]
        for line in filter(None, lines):
            out().print(f"  {line}", markup=False)
    return 0
