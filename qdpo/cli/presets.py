"""`qdpo presets`: list the recipes, show what one resolves to, copy one to edit."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from qdpo import console
from qdpo.errors import OutputError

if TYPE_CHECKING:
    from qdpo.config.resolve import Resolved

HELP = "List the recipes, show one with every value's meaning and origin, or copy one to edit."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions: `list` (also without an action), `show`, `copy`."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action")
    actions.add_parser("list", help="list the shipped presets (this is what happens without an action)")
    show = actions.add_parser("show", help="print every value of a preset, its meaning and where it came from")
    show.add_argument("preset", metavar="NAME", help="a preset's name or file")
    show.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change a value, such as train.max_steps=50"
    )
    show.add_argument("--yaml", action="store_true", help="as a complete preset file, which --preset takes again")
    copy = actions.add_parser("copy", help="copy a preset with its comments to a file of your own")
    copy.add_argument("preset", metavar="NAME", help="a preset's name or file")
    copy.add_argument("file", metavar="FILE", type=Path, help="the new file; an existing one is not touched")


def run(args: argparse.Namespace) -> int:
    """List, show or copy.

    Raises:
        ConfigError: there is no such preset, or it is faulty.
        OutputError: the copy cannot be written.
    """
    if args.action == "show":
        _show(args.preset, args.set, as_yaml=args.yaml)
    elif args.action == "copy":
        _copy(args.preset, args.file)
    else:
        _list()
    return 0


def _list() -> None:
    from qdpo.config.presets import names
    from qdpo.config.resolve import resolve
    from qdpo.listing import Listing

    rows = []
    for name in names():
        config = resolve(name).config
        memory = f"{config.gpu_memory_gib:g} GiB" if config.gpu_memory_gib else "none"
        rows.append((name, config.model.name, config.data.name, config.card, memory))
    console.out().print(Listing(("name", "base", "data", "card it fits", "GPU memory"), rows, texts=4))
    console.say("`qdpo presets show NAME` explains one; `qdpo train --preset NAME` runs it")


def _show(preset: str, overrides: list[str], as_yaml: bool) -> None:
    from qdpo.config.resolve import resolve, to_yaml

    resolved = resolve(preset, overrides)
    if as_yaml:
        print(to_yaml(resolved), end="")
    else:
        _print_settings(resolved)


def _print_settings(resolved: Resolved) -> None:
    """One line per value: key, value, origin; what it means below."""
    from rich.text import Text

    from qdpo.config.fields import settings
    from qdpo.config.resolve import value_of
    from qdpo.config.strict_yaml import dump

    section = ""
    out = console.out()
    for key, setting in settings().items():
        head = key.rpartition(".")[0]
        if head != section:
            out.print()
            section = head
        value = value_of(resolved.config, key)
        sentences = isinstance(value, list) and any(" " in str(item) for item in value)
        line = Text(f"{key}:", style="bold")
        line.append("" if sentences else f" {dump(value)}", style="not bold")
        line.append(f"  [{resolved.origins[key]}]", style="not bold cyan")
        out.print(line)
        for sentence in value if sentences else ():
            out.print(Text(f"  - {sentence}"))
        out.print(Text(f"    {setting.meaning}; {setting.expected}", style="dim"))


def _copy(preset: str, target: Path) -> None:
    from qdpo.config.presets import copy_text

    text = copy_text(preset, target)
    try:
        # "x" fails where something is in the way, a dangling link too.
        with open(target, "x", encoding="utf-8", newline="") as stream:
            stream.write(text)
    except FileExistsError:
        raise OutputError(f"{target} exists and is left as it is", "give the name of a new file") from None
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror}") from None
    # A bare name would be looked up among the shipped presets first.
    shown = str(target) if target.name != str(target) or target.suffix in (".yaml", ".yml") else f"./{target}"
    console.say(f"wrote {target}; edit it, then: qdpo train --preset {shlex.quote(shown)}")
