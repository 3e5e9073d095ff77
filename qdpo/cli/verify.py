"""`qdpo verify`: prove that an export is whole and does what the trained model does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EX_NOT_GOOD_ENOUGH = 1
EX_NOT_SCORED = 2
HELP = "check an export: its bytes, its tensors, its tokens, and its preferences on held-out pairs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("artefact", type=Path, metavar="EXPORT", help="folder that `qdpo merge-export` wrote")
    parser.add_argument("--run", type=Path, metavar="DIR", help="run directory (default: looked for above EXPORT)")
    parser.add_argument(
        "--pairs", type=int, metavar="N", help="held-out pairs to score (default: the run's verify.pairs)"
    )
    parser.add_argument(
        "--against", type=Path, metavar="OTHER", help="compare with another export (folder or GGUF file) instead"
    )


def run(args: argparse.Namespace) -> int:
    """Verify; returns the exit code of the verdict."""
    from qdpo.console import out
    from qdpo.errors import UsageError
    from qdpo.export.verify.run import find_run, verify_export
    from qdpo.report.refresh import refresh

    if args.pairs is not None and args.pairs < 1:
        raise UsageError(f"--pairs {args.pairs}: at least one pair is needed")
    if args.against:
        from qdpo.export.verify.against import compare_artefacts

        result = compare_artefacts(args.artefact, args.against, args.run, args.pairs)
        out().print_json(data=result)
        return 0
    folder = args.artefact if args.artefact.is_dir() else args.artefact.parent
    verdict = verify_export(folder, args.run, args.pairs)
    refresh(args.run or find_run(folder))
    out().print(word(verdict))
    return exit_code(verdict)


def word(verdict: dict[str, Any]) -> str:
    """The verdict in a word or two."""
    return "failed" if not verdict["passed"] else "passed" if verdict["scored"] else "not scored"


def exit_code(verdict: dict[str, Any]) -> int:
    """0: everything ran that is needed, and passed. 1: a check failed. 2: none failed, but nothing could be scored."""
    return EX_NOT_GOOD_ENOUGH if not verdict["passed"] else 0 if verdict["scored"] else EX_NOT_SCORED
