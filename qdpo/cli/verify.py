"""`qdpo verify`: prove that an export is whole and does what the trained model does."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "check an export: its bytes, its tensors, its tokens, and its preferences on held-out pairs"
EX_NOT_GOOD_ENOUGH = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("artefact", type=Path, metavar="EXPORT", help="folder that `qdpo merge-export` wrote")
    parser.add_argument("--run", type=Path, metavar="DIR", help="run directory (default: looked for above EXPORT)")
    parser.add_argument("--pairs", type=int, default=64, metavar="N", help="held-out pairs to score (default: 64)")
    parser.add_argument(
        "--against", type=Path, metavar="OTHER", help="compare with another export (folder or GGUF file) instead"
    )


def run(args: argparse.Namespace) -> int:
    """Verify; returns 0 when no check failed, 1 otherwise."""
    from qdpo.console import out
    from qdpo.errors import UsageError
    from qdpo.export.verify.run import verify_export

    if args.pairs < 1:
        raise UsageError(f"--pairs {args.pairs}: at least one pair is needed")
    if args.against:
        from qdpo.export.verify.against import compare_artefacts

        result = compare_artefacts(args.artefact, args.against, args.run, args.pairs)
        out().print_json(data=result)
        return 0
    folder = args.artefact if args.artefact.is_dir() else args.artefact.parent
    verdict = verify_export(folder, args.run, args.pairs)
    out().print("passed" if verdict["passed"] else "failed")
    return 0 if verdict["passed"] else EX_NOT_GOOD_ENOUGH
