"""`qdpo pairs generate`."""

from __future__ import annotations

import argparse

HELP = "generate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the step."""


def run(args: argparse.Namespace) -> int:
    """Run."""
    raise NotImplementedError
