"""`qdpo report`: render a run's card and report page anew, also while it trains; serve the page while it changes."""

from __future__ import annotations

import argparse
from pathlib import Path

from qdpo.errors import UsageError

HELP = (
    "Write README.md (the model card), plots and report.html of a run anew, from what is in its directory. Training, "
    "`qdpo eval` and `qdpo merge-export` do it by themselves; this is for a run that is still training, or an old one. "
    "With --serve the page is served on this machine's loopback instead, kept new, with a button that stops the run."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("--run", metavar="DIR", type=Path, required=True, help="the run directory, finished or not")
    parser.add_argument(
        "--serve", action="store_true", help="serve the page on 127.0.0.1 until Ctrl-C, and write nothing"
    )
    parser.add_argument("--port", metavar="N", type=int, help="with --serve: the port (8717, or a free one)")


def run(args: argparse.Namespace) -> int:
    """Render, and print where the page is."""
    from qdpo.console import out

    folder = args.run.expanduser()
    if args.serve:
        return _serve(folder, args.port)
    if args.port is not None:
        raise UsageError("--port is for --serve", "qdpo report --run DIR --serve --port N")
    from qdpo.api.run import Run

    out().print(str(Run(folder).report()), markup=False)
    return 0


def _serve(folder: Path, port: int | None) -> int:
    """Serve until Ctrl-C."""
    from qdpo import console
    from qdpo.loopback import check_port
    from qdpo.report.serve import Server

    check_port(port)
    with Server(folder, port) as server:
        console.out().print(server.address, markup=False, soft_wrap=True)
        console.note(f"{server.from_elsewhere}; Ctrl-C here ends the page, not the run")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.say("no longer served")
    return 0
