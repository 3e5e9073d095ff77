"""`qdpo train`: fine-tune a model on preference pairs."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qdpo import console
from qdpo.cli.next_steps import after_training
from qdpo.cli.options import add_config, nothing_named
from qdpo.errors import QdpoError, UsageError
from qdpo.progress import waiting
from qdpo.run.folder import CONFIG

if TYPE_CHECKING:
    from qdpo.api.config import Config

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
    parser.add_argument("--yes", action="store_true", help="without a preset: do not ask whether to begin")
    parser.add_argument("--dry-run", action="store_true", help="check and say what a run would do, then stop")
    parser.add_argument("--verbose", action="store_true", help="with --dry-run: every setting and the schedule too")


def run(args: argparse.Namespace) -> int:
    """Train, or say what training would do.

    Returns:
        0, or 128 + the number of the signal that stopped the run.
    """
    if args.verbose and not args.dry_run:
        raise UsageError("--verbose says more of a dry run", "add --dry-run, or leave --verbose out")
    if args.preset is None and not args.resume:
        return _train_own(args)
    return _train(args)


def _train_own(args: argparse.Namespace) -> int:
    """Train a model on data with nothing else said: with settings that are chosen for them, in a file that stays.

    Raises:
        UsageError: model or data are not named.
    """
    if not (args.model and args.data):
        raise nothing_named(args, "qdpo train --preset quickstart")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("several processes need a preset", "let `qdpo init` write one, then give it with --preset")
    from qdpo.api.beginning import begin, write
    from qdpo.cli.init import as_preset, ask, can_ask, say_seen

    trusted = ["model.trust_remote_code=true"] if args.trust_remote_code else []
    beginning = begin(args.model, args.data, [*args.overrides, *trusted])
    say_seen(beginning)
    args.overrides, args.model, args.data = [], None, None
    if args.dry_run:
        return _train(args, beginning.config)
    file = beginning.file()
    is_new = not file.exists()
    write(beginning.text, file)
    args.preset = str(file)
    console.note(f"these settings are in {file}: change them there, then qdpo train --preset {as_preset(file)}")
    if can_ask(args.yes) and ask("train now? yes or no", "yes").lower() not in ("y", "yes"):
        return 0
    try:
        return _train(args)
    except QdpoError:
        # a start that failed leaves nothing
        if is_new and not Path(args.run_dir or Path("runs", beginning.name)).exists():
            file.unlink(missing_ok=True)
        raise


def _train(args: argparse.Namespace, config: Config | None = None) -> int:
    """Train by a preset, or by a configuration that has no file; returns the exit code."""
    from qdpo.training.signals import insisting, watch

    # between the stages, which say what they do, there are imports
    with watch() as stop, insisting(stop), waiting("qdpo train"):
        from qdpo.api.training import prepare

        job = prepare(
            config or args.preset,
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

            return describe(job.config.resolved, job.folder, verbose=args.verbose)
        folder = job.do(stop, shlex.join(["qdpo", *(sys.argv[1:] or ["train"])]))
        if stop.exit_code == 0 and (folder / CONFIG).is_file():  # of several processes the first one writes
            after_training(folder)
        return stop.exit_code
