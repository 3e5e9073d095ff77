"""`qdpo report`: render a run's card and report page anew, also while it trains."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = (
    "Write README.md (the model card), plots and report.html of a run anew, from what is in its directory. Training, "
    "`qdpo eval` and `qdpo merge-export` do it by themselves; this is for a run that is still training, or an old one."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("--run", metavar="DIR", type=Path, required=True, help="the run directory, finished or not")


def run(args: argparse.Namespace) -> int:
    """Render, and print where the page is."""
    from qdpo.api.run import Run
    from qdpo.console import out

    out().print(str(Run(args.run.expanduser()).report()), markup=False)
    return 0
