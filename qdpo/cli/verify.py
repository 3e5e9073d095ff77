"""`qdpo verify`: prove that an export is whole and does what the trained model does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qdpo.cli.options import add_model, follow_base
from qdpo.errors import UsageError

if TYPE_CHECKING:
    from qdpo.api.exporting import Proof

EX_NOT_GOOD_ENOUGH = 1
EX_CANNOT_BE_TOLD = 2
HELP = "check an export: its bytes, its tensors, its tokens, and its preferences on held-out pairs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "artefact",
        type=Path,
        metavar="EXPORT",
        help="folder that `qdpo merge-export` wrote; for --engine vllm also a run's adapter/",
    )
    parser.add_argument("--run", type=Path, metavar="DIR", help="run directory (default: looked for above EXPORT)")
    add_model(parser)
    parser.add_argument(
        "--pairs", type=int, metavar="N", help="held-out pairs to score (default: the run's verify.pairs)"
    )
    parser.add_argument("--engine", choices=["vllm"], help="score by vLLM (safetensors, awq, adapter)")
    parser.add_argument("--engine-python", type=Path, metavar="PYTHON", help="Python of the environment that has vLLM")
    parser.add_argument(
        "--against", type=Path, metavar="OTHER", help="compare with another export (folder or GGUF file) instead"
    )


def run(args: argparse.Namespace) -> int:
    """Verify; returns the exit code of the verdict."""
    from qdpo.api.exporting import Export, check_pairs
    from qdpo.console import out

    check_pairs(args.pairs)
    if (args.engine is None) != (args.engine_python is None) or (args.engine and args.against):
        raise UsageError(
            "--engine and --engine-python go together, and not with --against",
            "--engine vllm --engine-python ENV/bin/python: vLLM lives in an environment of its own",
        )
    if args.model:
        from qdpo.export.verify.run import find_run

        follow_base(args.model, args.run or find_run(args.artefact))
    if args.against:
        from qdpo.export.verify.against import compare_artefacts

        out().print_json(data=compare_artefacts(args.artefact, args.against, args.run, args.pairs))
        return 0
    folder = args.artefact if args.artefact.is_dir() else args.artefact.parent
    proof = Export(folder, args.run).verify(args.pairs, vllm=args.engine_python)
    out().print(proof.verdict)
    return exit_code(proof)


def exit_code(proof: Proof) -> int:
    """0: passed. 1: a check failed, or what was trained is lost. 2: it cannot be told."""
    return {"passed": 0, "cannot be told": EX_CANNOT_BE_TOLD}.get(proof.verdict, EX_NOT_GOOD_ENOUGH)
