"""`qdpo pairs from-ratings`: turn scores, thumbs, edits or votes into pairs."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "Turn answers that people have rated into preference pairs: scores, thumbs, edits, or the votes of `qdpo pairs vote`."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the step."""
    parser.add_argument("file", metavar="FILE", help="rated answers: a file, a folder or a hub dataset")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the new file of pairs (JSONL)")


def run(args: argparse.Namespace) -> int:
    """Read, pair, write."""
    raise NotImplementedError
