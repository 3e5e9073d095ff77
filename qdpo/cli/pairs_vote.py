"""`qdpo pairs vote`."""

from __future__ import annotations

import argparse

HELP = "vote"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the step."""


def run(args: argparse.Namespace) -> int:
    """Run."""
    raise NotImplementedError
