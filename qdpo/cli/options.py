"""Options that several verbs have, and the configuration that they give."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

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
    parser.add_argument("--preset", metavar="NAME", help="a preset's name or a YAML file (see `qdpo presets`)")
    parser.add_argument("--model", metavar="PATH", help="base model: hub name or local folder (model.name)")
    parser.add_argument("--data", metavar="PATH", help="preference data: hub name or local file (data.name)")
    add_set(parser)


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


def config_of(args: argparse.Namespace, example: str) -> Config:
    """The configuration that these options give.

    Args:
        args: with the options of `add_config`.
        example: a command that names a preset.

    Raises:
        UsageError: no preset is named.
        ConfigError: with every mistake that was found.
    """
    from qdpo.api.config import Config

    if args.preset is None:
        raise UsageError("which preset?", f"{example}; `qdpo presets` lists them")
    return Config.load(args.preset, args.overrides, model=args.model, data=args.data)
