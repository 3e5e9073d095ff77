"""`qdpo init`: look at a model and data, and write a preset for them."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qdpo import console
from qdpo.cli.next_steps import say_next
from qdpo.cli.options import add_own, add_set
from qdpo.errors import UsageError

if TYPE_CHECKING:
    from qdpo.api.beginning import Beginning

HELP = "Look at your model and data, and write a preset for them: at most 40 lines, each with its reason."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    add_own(parser)
    add_set(parser)
    parser.add_argument("--out", metavar="FILE", type=Path, help="the new preset file; default NAME.yaml")
    parser.add_argument("--yes", action="store_true", help="ask nothing")


def run(args: argparse.Namespace) -> int:
    """Look, ask, write.

    Raises:
        UsageError: model or data are not named, and nobody can be asked.
        OutputError: the file exists, or cannot be written.
    """
    model = args.model or _asked(args, "model", "base model (hub name or folder)")
    data = args.data or _asked(args, "data", "preference data (hub name, file or folder)")
    from qdpo.api.beginning import begin, write

    beginning = begin(model, data, args.overrides)
    say_seen(beginning)
    file = args.out
    if can_ask(args.yes):
        if beginning.given.isdisjoint({"train.num_train_epochs", "train.max_steps"}):
            epochs = next(one.value for one in beginning.chosen if one.key == "train.num_train_epochs")
            said = ask("passes over the pairs (epochs)", f"{epochs:g}")
            beginning = beginning.change(f"train.num_train_epochs={said}")
        file = file or Path(ask("file of the preset", str(beginning.file())))
    file = file or beginning.file()
    write(beginning.text, file)
    preset = as_preset(file)
    say_next(
        (f"qdpo data {shlex.quote(beginning.seen.data)} --preset {preset} --preview 3", "see what is learned from"),
        (f"qdpo plan --preset {preset}", "memory, time and disk"),
        (f"qdpo train --preset {preset}", "train"),
    )
    console.out().print(str(file), markup=False)
    return 0


def say_seen(beginning: Beginning) -> None:
    """Say what was chosen, and why."""
    from qdpo.config.strict_yaml import dump
    from qdpo.planner.suggest import remarks

    for one in beginning.chosen:
        console.say(f"{one.key}: {dump(one.value)}  ({one.why})")
    for remark in remarks(beginning.seen):
        console.note(remark)


def as_preset(file: Path) -> str:
    """A preset file as `--preset` takes it: a bare name would be looked up among the shipped presets first."""
    bare = file.name == str(file) and file.suffix not in (".yaml", ".yml")
    return shlex.quote(f"./{file}" if bare else str(file))


def can_ask(yes: bool) -> bool:
    """Whether questions can be asked and answered: both ends are terminals."""
    return not yes and sys.stdin.isatty() and console.is_interactive()


def ask(question: str, default: str) -> str:
    """An answer from the terminal; Return takes the default.

    Raises:
        UsageError: the terminal has closed.
    """
    shown = f" [{default}]" if default else ""
    console.talk().print(f"{question}{shown}: ", end="", markup=False, highlight=False)
    try:
        return input().strip() or default
    except EOFError:
        raise UsageError("no answer", "--yes asks nothing") from None


def _asked(args: argparse.Namespace, option: str, question: str) -> str:
    if can_ask(args.yes) and (said := ask(question, "")):
        return said
    raise UsageError(f"which {option}?", "qdpo init --model MODEL --data PAIRS: hub names, or what is on this machine")
