"""How to begin with one's own model and data: settings that fit them, as a preset file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qdpo.api.config import Config
from qdpo.api.process import borrowed
from qdpo.config.overrides import Override, parse_override
from qdpo.config.presets import NEUTRAL
from qdpo.config.strict_yaml import dump
from qdpo.data.files import pipes
from qdpo.errors import OutputError
from qdpo.paths import output_path
from qdpo.planner.looks import Look, look
from qdpo.planner.suggest import Suggested, name_of, suggest, to_file
from qdpo.progress import waiting


@dataclass(frozen=True)
class Beginning:
    """Settings for one's own model and data, and a preset file of them that is not yet written.

    Attributes:
        seen: model and data, looked at.
        overrides: what was given beside them, as `--set` takes it.
        name: of the preset and its runs.
        chosen: the settings, each with its reason.
    """

    seen: Look
    overrides: tuple[str, ...]
    name: str
    chosen: list[Suggested]

    @property
    def given(self) -> frozenset[str]:
        """Keys of the settings that were given."""
        return _keys(self.overrides)

    @property
    def text(self) -> str:
        """The preset file."""
        return to_file(self.name, self.seen, self.chosen)

    @property
    def config(self) -> Config:
        """The same without a file."""
        values = [f"{one.key}={one.value if isinstance(one.value, str) else dump(one.value)}" for one in self.chosen]
        return Config.load(NEUTRAL, [f"name={self.name}", *values])

    def file(self) -> Path:
        """Where it goes: a file of its name in the current folder that does not exist or is the same, else numbered."""
        number, path = 1, Path(f"{self.name}.yaml")
        while path.exists() and path.read_bytes() != self.text.encode():
            number += 1
            path = Path(f"{self.name}-{number}.yaml")
        return path

    def change(self, *overrides: str) -> Beginning:
        """The same model and data with further settings that are given.

        Raises:
            ConfigError: one of them is wrong.
        """
        return choose(self.seen, (*self.overrides, *overrides))


def begin(model: str, data: str, overrides: Sequence[str] = ()) -> Beginning:
    """Look at a model and data, and choose settings for them.

    Args:
        model: hub name or local folder.
        data: hub name, local file or folder.
        overrides: settings that are given, as `--set` takes them.

    Raises:
        QdpoError: one of them cannot be had or used; rows at fault are an error here as in a run.
    """
    config = Config.load(NEUTRAL, overrides, model=model, data=data)
    pipes.refuse(config.data)
    template = config.data.template if "data.template" in _keys(overrides) else None
    with borrowed(), waiting("looking at model and data"):
        return choose(look(config, template), tuple(overrides))


def choose(seen: Look, overrides: tuple[str, ...]) -> Beginning:
    """Settings for a model and data that were looked at; see `begin`."""
    config = Config.load(NEUTRAL, overrides, model=seen.model, data=seen.data)
    given = _keys(overrides)
    name = config.name if "name" in given else name_of(seen)
    return Beginning(seen, overrides, name, suggest(seen, config, given))


def _keys(overrides: Sequence[str]) -> frozenset[str]:
    return frozenset(found.key for text in overrides if isinstance(found := parse_override(text), Override))


def write(text: str, file: Path) -> None:
    """Write a preset file; one that exists is left as it is.

    Raises:
        OutputError: there is another file of this name, or it cannot be written.
    """
    place = output_path(str(file), "--out")
    try:
        with open(place, "x", encoding="utf-8", newline="") as stream:
            stream.write(text)
    except FileExistsError:
        if place.is_file() and place.read_bytes() == text.encode():
            return
        raise OutputError(f"{file} exists and is left as it is", "give the name of a new file") from None
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror}") from None
