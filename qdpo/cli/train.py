"""`qdpo train`: fine-tune a model on preference pairs."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qdpo.training.signals import Stop

HELP = "Fine-tune a model by DPO on preference pairs, with its base in 4 bits."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("--preset", metavar="NAME", help="a preset's name or a YAML file (see `qdpo presets`)")
    parser.add_argument("--model", metavar="PATH", help="base model: hub name or local folder (model.name)")
    parser.add_argument("--data", metavar="PATH", help="preference data: hub name or local file (data.name)")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help="override one setting"
    )
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
    """Resolve the configuration and train, or say what training would do.

    Returns:
        0, or 128 + the number of the signal that stopped the run.
    """
    from qdpo.training.signals import insisting, watch

    with watch() as stop, insisting(stop):
        return _run(args, stop)


def _run(args: argparse.Namespace, stop: Stop) -> int:
    from qdpo.paths import output_path
    from qdpo.run import lock

    if args.run_dir is not None:
        # before anything that takes long to import
        lock.refuse_if_busy(output_path(args.run_dir, "--run-dir"))
    from qdpo import cuda
    from qdpo.config.resolve import resolve
    from qdpo.errors import ConfigError, UsageError
    from qdpo.run import folder as run_folder

    mirror = None if args.mirror is None else output_path(args.mirror, "--mirror")
    if args.resume and args.auto:
        raise UsageError("--auto is for a new run", "a resumed run keeps the settings that it began with")
    if args.allow_change and not args.resume:
        raise UsageError("--allow-change is for --resume", "a new run may be configured in any way")
    overrides = [*replacements(args.model, args.data), *args.overrides]
    if args.trust_remote_code:
        overrides.append("model.trust_remote_code=true")
    if args.resume:
        if args.run_dir is None:
            raise UsageError("--resume needs --run-dir", "name the run's folder: --run-dir runs/NAME --resume")
        folder = run_folder.existing(args.run_dir)
        resolved = run_folder.reopen(folder, args.preset, overrides)
        preset = args.preset or str(folder)
    else:
        if args.preset is None:
            raise UsageError("which preset?", "qdpo train --preset quickstart; `qdpo presets` lists them")
        preset = args.preset
        resolved = resolve(preset, overrides)
        folder = run_folder.choose(args.run_dir, resolved.config.name)
    if not (args.dry_run or args.allow_cpu):
        cuda.check_gpu(resolved.config)
    if args.auto:
        from qdpo.planner.auto import choose_here

        resolved = resolve(preset, [*overrides, *choose_here(resolved.config)])
    if resolved.config.model.trust_remote_code and not args.trust_remote_code:
        raise ConfigError(
            f"model.trust_remote_code is set ({resolved.origins['model.trust_remote_code']}), and a file cannot allow "
            "that code of others is run",
            "read the code at model.revision, then give --trust-remote-code on the command line; or set it to false",
        )
    if args.dry_run:
        from qdpo.training.dry_run import describe

        return describe(resolved, folder)
    command = shlex.join(["qdpo", *(sys.argv[1:] or ["train"])])
    with _together(folder, args.resume) as folder, lock.locked(folder):
        from qdpo.training.run import train

        train(
            resolved,
            folder,
            preset=preset,
            command=command,
            resume=args.resume,
            allow_changes=args.allow_change,
            stop=stop,
            mirror=mirror,
        )
    return stop.exit_code


def _together(folder: Path, resume: bool) -> AbstractContextManager[Path]:
    """The run directory, shared with the processes that a launcher has started beside this one, if it has."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        # torch is not imported for it: another run in the same folder is to be told at once
        return contextlib.nullcontext(folder)
    from qdpo.training import parallel

    parallel.begin()
    return parallel.own_folder(folder, resume=resume)


def replacements(model: str | None, data: str | None) -> list[str]:
    """`--model` and `--data` as overrides.

    What a preset says of its own model or dataset (revision, split, schema, evaluation sets) does not hold for others.
    """
    overrides = []
    if model is not None:
        overrides += [f"model.name={model}", "model.revision=null", "model.tokenizer=null"]
    if data is not None:
        unset = ("config", "revision", "eval_name", "eval_split")
        overrides += [f"data.name={data}", "data.split=train", "data.format=auto", "data.columns={}"]
        overrides += ["data.contamination=[]"]
        overrides += [f"data.{key}=null" for key in unset]
    return overrides
