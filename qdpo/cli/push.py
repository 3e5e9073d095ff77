"""`qdpo push`: publish a run's adapter, or one of its exports, on the Hugging Face hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from qdpo.export.formats import FORMATS

HELP = (
    "Upload the adapter, or an export, with its card. A new repository is private. The login is the hub's own "
    "(`hf auth login`). Run again after an interruption, it goes on where it was."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("--run", metavar="DIR", type=Path, required=True, help="the run directory")
    parser.add_argument("--to", metavar="USER/NAME", required=True, help="the repository; it is created where needed")
    parser.add_argument(
        "--format", choices=["adapter", *FORMATS], default="adapter", help="what to upload (default: adapter)"
    )
    parser.add_argument("--public", action="store_true", help="create it public, or push to one that is")


def run(args: argparse.Namespace) -> int:
    """Publish, and print the address."""
    from qdpo.console import out
    from qdpo.report.publish import publish

    url = publish(args.run.expanduser(), args.to, args.format, public=args.public)
    out().print(url, markup=False)
    return 0
