"""Where the settings of a run came from, and whether what its preset says of itself is still true of the run.

A preset describes itself: its name, its recipe in a line, notes. Who takes it for another model, other pairs or other
settings has another recipe, and what the preset says is not known to hold. So a run keeps which settings were given
later than that description: on the command line, or in a file that extends the preset and has no description.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from qdpo.config import fields, presets, strict_yaml
from qdpo.config.resolve import DEFAULT, Resolved, resolve, value_of
from qdpo.config.schema import RunConfig
from qdpo.errors import QdpoError
from qdpo.run.folder import CONFIG
from qdpo.run.meaning import FREE, ROUNDING, meaning
from qdpo.run.schema import Recipe, Record

SUBJECT = ("model.name", "data.name")
"""What a run is about; with another one it needs another name."""


def recipe_of(preset: str, resolved: Resolved) -> Recipe:
    """The recipe of a run that begins.

    Args:
        preset: what the user called the configuration.
        resolved: the configuration.
    """
    plain = None
    try:
        files = [document.source for document in presets.load_chain(preset)]
        plain = resolve(preset).config
    except QdpoError:
        files = _files(resolved.origins, preset)  # not by its name alone, or no whole recipe without a model or data
    return _recipe(resolved.config, resolved.origins, files, plain)


def read_recipe(folder: Path, config: RunConfig, record: Record) -> Recipe:
    """The recipe of a run: as it was kept, or as the origins in config.yaml tell of a run that kept none.

    Raises:
        ConfigError: as `read_origins`.
    """
    if record.recipe:
        return record.recipe
    found = read_origins(folder)
    origins = {key: found.get(key, DEFAULT) for key in fields.settings()}
    return _recipe(config, origins, _files(origins, record.preset))


def read_origins(folder: Path) -> dict[str, str]:
    """Where each setting of a run came from, as the comments of its config.yaml say.

    Raises:
        ConfigError: the file is not YAML.
    """
    path = folder / CONFIG
    document = strict_yaml.load(path)
    lines = strict_yaml.read_text(path, str(path)).splitlines()
    found = {}
    for key in fields.settings():
        place = document.places.get(tuple(key.split(".")))
        line = lines[place.line - 1] if place and place.line <= len(lines) else ""
        if "  # " in line:
            found[key] = line.rpartition("  # ")[2]
    return found


def with_first_origins(folder: Path, resolved: Resolved) -> Resolved:
    """The configuration of a run that goes on: what it takes from its own config.yaml came from elsewhere at first.

    Raises:
        ConfigError: as `read_origins`.
    """
    own, first = str(folder / CONFIG), read_origins(folder)
    found = {
        key: first.get(key, origin) if _file(origin) == own else origin for key, origin in resolved.origins.items()
    }
    return replace(resolved, origins=found)


def _files(origins: Mapping[str, str], preset: str | None) -> list[str]:
    """The chain of presets by the files that settings come from: first the shipped ones, last the one called for."""
    named = (preset, f"presets/{preset}.yaml")
    files = dict.fromkeys(file for origin in origins.values() if (file := _file(origin)))
    return sorted(files, key=lambda file: (file in named, not file.startswith("presets/")))


def _recipe(
    config: RunConfig, origins: Mapping[str, str], files: Sequence[str], plain: RunConfig | None = None
) -> Recipe:
    """The recipe by the origins of all settings.

    Args:
        config: the settings.
        origins: `FILE:LINE`, `default`, or else: given by the user when the run began.
        files: the chain of presets, the most basic one first.
        plain: the settings of the chain alone, where they are known; who gives one of them again changes nothing.
    """

    def rank(key: str) -> int:
        if origins[key] == DEFAULT:
            return -1
        file = _file(origins[key])
        if file in files:
            return files.index(file)
        # the chain itself gives it, somewhere
        return 0 if plain is not None and value_of(plain, key) == value_of(config, key) else len(files)

    decisive = [key for key in origins if meaning(key) not in (FREE, ROUNDING)]
    described = rank("about" if config.about else "name")
    later = [key for key in decisive if rank(key) > described]
    label = files[described] if 0 <= described < len(files) else ""
    return Recipe(
        preset=Path(label).stem if label.startswith("presets/") else Path(label).name,
        changed=[key for key in later if not _is_reset(key, config, later)],
        named=all(rank(key) <= rank("name") for key in SUBJECT),
        noted=all(rank(key) <= rank("notes") for key in decisive),
    )


def _is_reset(key: str, config: RunConfig, later: Sequence[str]) -> bool:
    """Whether a setting is only what it would be without the preset, because model or data are others."""
    section, _, leaf = key.partition(".")
    subject = f"{section}.name"
    if key == subject or subject not in later:
        return False
    described = type(getattr(config, section)).model_fields[leaf]
    return bool(value_of(config, key) == described.get_default(call_default_factory=True))


def _file(origin: str) -> str:
    """The file of `FILE:LINE`; empty for another origin."""
    file, colon, line = origin.rpartition(":")
    return file if colon and line.isdecimal() else ""
