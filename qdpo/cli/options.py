"""Options that several verbs have, and the configuration that they give."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qdpo import console
from qdpo.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from qdpo.api.config import Config


def add_set(parser: argparse.ArgumentParser) -> None:
    """`--set KEY=VALUE`."""
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help="override one setting"
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """`--preset`, `--model`, `--data` and `--set`."""
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="a preset's name or a YAML file (see `qdpo presets`); without one, settings are chosen for --model and "
        "--data as `qdpo init` does",
    )
    add_own(parser)
    add_set(parser)


def add_own(parser: argparse.ArgumentParser) -> None:
    """`--model` and `--data`."""
    parser.add_argument("--model", metavar="PATH", help="base model: hub name or local folder (model.name)")
    parser.add_argument("--data", metavar="PATH", help="preference data: hub name or local file (data.name)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """`--model` of verbs that use a finished run."""
    parser.add_argument(
        "--model", metavar="DIR", help="where the run's base lies now, if its folder has moved; the run remembers it"
    )


def follow_base(model: str | None, run: Path) -> None:
    """Let a run know of its base's new place, if one was given.

    Raises:
        QdpoError: it is another base, or not there.
    """
    if model is not None:
        from qdpo.run.base import move_base

        move_base(run, model)


def nothing_named(args: argparse.Namespace, example: str) -> UsageError:
    """The error where there is neither a preset nor both a model and data.

    Args:
        args: with the options of `add_config`.
        example: a command that names a preset.
    """
    missing = [name for name in ("model", "data") if getattr(args, name) is None]
    if len(missing) == 1:
        return UsageError(
            f"which {missing[0]}? There is no preset that would say", f"give --{missing[0]} too, or --preset NAME"
        )
    return UsageError("which preset?", f"{example}; `qdpo presets` lists them; or your own: --model MODEL --data PAIRS")


def config_of(args: argparse.Namespace, example: str) -> Config:
    """The configuration that these options give.

    Args:
        args: with the options of `add_config`.
        example: a command that names a preset.

    Raises:
        UsageError: neither a preset nor model and data are named.
        ConfigError: with every mistake that was found.
    """
    from qdpo.api.config import Config

    if args.preset is None:
        if args.model and args.data:
            from qdpo.api.beginning import begin

            return begin(args.model, args.data, args.overrides).config
        raise nothing_named(args, example)
    return Config.load(args.preset, args.overrides, model=args.model, data=args.data)


OTHER_NAMES = {
    "lr": "train.learning_rate",
    "epochs": "train.num_train_epochs",
    "num_epochs": "train.num_train_epochs",
    "steps": "train.max_steps",
    "batch_size": "train.pairs_per_step",
    "scheduler": "train.lr_scheduler_type",
    "warmup": "train.warmup_ratio",
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "rank": "lora.r",
    "loss": "loss.loss_type",
    "max_seq_length": "data.max_length",
    "max_len": "data.max_length",
    "chat_template": "data.template",
    "system_prompt": "data.system",
    "eval_steps": "train.eval_every",
    "save_steps": "train.save_every",
    "logging_steps": "train.log_every",
    "optimizer": "train.optim",
}
"""What other tools call a setting, for a flag that is tried."""
OTHER_OPTIONS = {
    "output_dir": "--run-dir",
    "out_dir": "--run-dir",
    "dataset": "--data",
    "dataset_name": "--data",
    "base_model": "--model",
    "model_name": "--model",
    "model_name_or_path": "--model",
    "config": "--preset",
}
"""What other tools call an option."""


def flags() -> dict[str, str]:
    """Settings that have a flag of their own, `--learning-rate` say: its name without dashes, and the setting's key."""
    from qdpo.config.fields import settings

    leaves = [key.rpartition(".")[2] for key in settings()]
    own = {leaf: key for leaf, key in zip(leaves, settings(), strict=True) if leaves.count(leaf) == 1}
    return own | OTHER_NAMES


def understand(argv: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """A command line in which the flags that people try are what they mean: `--lr 1e-4` is `--set
    train.learning_rate=1e-4`.

    Args:
        argv: the arguments.
        parser: of the verb; its own options come first, and it must take `--set`.

    Raises:
        UsageError: a flag has no value.
    """
    options = {option for action in parser._actions for option in action.option_strings}
    others = [word for word in argv if word.startswith("--") and word.partition("=")[0] not in options]
    if not others or "--set" not in options:
        return list(argv)
    known, words, meant = flags(), list(argv), []
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        option = OTHER_OPTIONS.get(name)
        if not word.startswith("--") or flag in options or not (name in known or option in options):
            meant.append(word)
            continue
        if not equals:
            if not words or words[0].startswith("--"):
                raise UsageError(
                    f"{flag} needs a value", f"{flag} VALUE, or --set {known[name]}=VALUE" if name in known else None
                )
            value = words.pop(0)
        if option in options:
            meant += [str(option), value]
        else:
            meant += ["--set", f"{known[name]}={value}"]
        console.note(f"{flag} {value}: {' '.join(meant[-2:])}")
    return meant
