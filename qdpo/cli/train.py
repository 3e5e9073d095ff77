"""`qdpo train`: fine-tune a model on preference pairs."""

from __future__ import annotations

import argparse
import shlex
import sys

from qdpo.cli.options import add_config
from qdpo.progress import waiting

HELP = "Fine-tune a model by DPO on preference pairs, with its base in 4 bits."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    add_config(parser)
    parser.add_argument("--run-dir", metavar="DIR", help="where the run is written; default runs/NAME")
    parser.add_argument(
        "--auto", action="store_true", help="choose token budgets, checkpointing and optimizer for the card found here"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in --run-dir, as it began or changed by --set"
    )
    parser.add_argument(
        "--allow-change",
        metavar="KEY",
        action="append",
        default=[],
        help="with --resume: accept a change that changes the result, such as train.max_steps or versions.torch",
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that comes with the base; needs model.revision as a 40-hex commit that you have read",
    )
    parser.add_argument(
        "--mirror", metavar="DIR", help="keep a second copy of the run there, on a mounted drive, say; can be resumed"
    )
    parser.add_argument(
        "--allow-cpu", action="store_true", help="train on the CPU where a preset that is made for a GPU finds none"
    )
    parser.add_argument("--dry-run", action="store_true", help="check and print what a run would do, then stop")


def run(args: argparse.Namespace) -> int:
    """Train, or say what training would do.

    Returns:
        0, or 128 + the number of the signal that stopped the run.
    """
    from qdpo.training.signals import insisting, watch

    # between the stages, which say what they do, there are imports
    with watch() as stop, insisting(stop), waiting("qdpo train"):
        from qdpo.api.training import prepare

        job = prepare(
            args.preset,
            args.overrides,
            model=args.model,
            data=args.data,
            run_dir=args.run_dir,
            resume=args.resume,
            allow_changes=args.allow_change,
            auto=args.auto,
            allow_cpu=args.allow_cpu or args.dry_run,
            trust_remote_code=args.trust_remote_code,
            mirror=args.mirror,
        )
        if args.dry_run:
            from qdpo.training.dry_run import describe

            return describe(job.config.resolved, job.folder)
        job.do(stop, shlex.join(["qdpo", *(sys.argv[1:] or ["train"])]))
        return stop.exit_code
