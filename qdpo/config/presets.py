"""Presets by name or by file, and the files that they extend.

The shipped ones are the YAML files of the repository's `presets/`, which a wheel carries as `qdpo/presets/`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import qdpo
from qdpo.config import strict_yaml
from qdpo.config.problems import Problem, config_error, nearest, quoted
from qdpo.config.strict_yaml import Document
from qdpo.errors import ConfigError, InputMissingError

NEUTRAL = "dpo"
"""The preset for one's own model and data, which chooses nothing for others."""
MAX_CHAIN = 8
"""Files in one chain of `extends:`; more than a reader can follow."""


@dataclass(frozen=True)
class PresetFile:
    """A preset's file, and how messages and origins name it."""

    path: Path
    label: str


def directory() -> Path:
    """The folder of the shipped presets.

    Raises:
        InputMissingError: the installation lacks it.
    """
    package = Path(qdpo.__file__).parent
    # A wheel has them inside the package; a checkout (and so `pip install -e .`) beside it.
    for folder in (package / "presets", package.parent / "presets"):
        if (folder / "quickstart.yaml").is_file():
            return folder
    raise InputMissingError(f"the shipped presets are missing from {package}", "install qdpo again")


def names() -> list[str]:
    """The shipped presets' names: quickstart first, the neutral one, then by alphabet."""
    first = ("quickstart", NEUTRAL)
    found = (path.stem for path in directory().glob("*.yaml"))
    return sorted(found, key=lambda name: (first.index(name) if name in first else len(first), name))


def find(preset: str, beside: Path | None = None) -> PresetFile:
    """The file of a preset.

    Args:
        preset: a shipped preset's name, or a path. A name wins over a file of the same name (`./NAME` is the file).
        beside: the folder that a relative path starts from; None is the working directory.

    Raises:
        ConfigError: no preset has this name.
    """
    shipped = names()
    if preset in shipped:
        return PresetFile(directory() / f"{preset}.yaml", f"presets/{preset}.yaml")
    path = Path(preset) if beside is None else beside / preset
    looks_like_a_path = "/" in preset or "\\" in preset or preset.endswith((".yaml", ".yml"))
    # os.path answers False where pathlib raises: a name that is too long, a folder that may not be entered.
    if looks_like_a_path or os.path.isfile(path):
        return PresetFile(path, str(path))
    close = nearest(preset, shipped)
    hint = f"did you mean `{close[0]}`? " if close else ""
    hint += f"Shipped presets: {', '.join(shipped)}; a file is given by its path, such as ./my.yaml"
    raise ConfigError(f"there is no preset {quoted(preset)}", hint)


def load_chain(preset: str) -> list[Document]:
    """The documents of a preset and of everything that it extends, the most basic one first.

    Raises:
        ConfigError: a file is missing or faulty, the chain has a cycle, or it is longer than `MAX_CHAIN`.
    """
    file = find(preset)
    chain: list[Document] = []
    seen: list[str] = []
    while True:
        seen.append(os.path.realpath(file.path))
        document = strict_yaml.load(file.path, file.label)
        chain.insert(0, document)
        if "extends" not in document.values:
            return chain
        file = _parent(document, file)
        where = document.where(("extends",))
        if os.path.realpath(file.path) in seen:
            raise config_error([Problem(where, f"`extends: {file.label}` leads back to a file that is being read")])
        if len(seen) == MAX_CHAIN:
            raise config_error([Problem(where, f"more than {MAX_CHAIN} presets extend one another")])


def copy_text(preset: str, target: Path) -> str:
    """A preset's text, comments and all, for a copy at another place.

    An `extends:` that names a file beside the preset is rewritten, so that it still leads there.

    Args:
        preset: a shipped preset's name, or a file.
        target: where the copy will be.

    Raises:
        ConfigError: there is no such preset, or it is faulty.
    """
    document = load_chain(preset)[-1]
    file = find(preset)
    text = strict_yaml.read_text(file.path, file.label)
    parent = document.values.get("extends")
    if parent is None or parent in names():
        return text
    # The file's own words up to the value stay; only a plain `extends: FILE` line is known to be safe to change.
    path = os.path.relpath(os.path.realpath(file.path.parent / parent), os.path.realpath(target.parent))
    lines = text.splitlines(keepends=True)
    line = document.places[("extends",)].line - 1
    start, found, rest = lines[line].partition(document.places[("extends",)].text or parent)
    if not found:
        hint = "write `extends: FILE` on one line"
        raise config_error([Problem(document.where(("extends",)), "`extends:` cannot be rewritten for the copy", hint)])
    lines[line] = f"{start}{path}{rest}"
    return "".join(lines)


def _parent(document: Document, file: PresetFile) -> PresetFile:
    parent = document.values["extends"]
    where = document.where(("extends",))
    if not isinstance(parent, str) or not parent:
        what = f"extends: expected a preset's name or a file beside this one, found {quoted(parent)}"
        raise config_error([Problem(where, what)])
    try:
        return find(parent, beside=file.path.parent)
    except ConfigError as error:
        raise config_error([Problem(where, f"extends: {error.message}", error.hint)]) from None
