"""A configuration from Python: a preset's name or file, changed by overrides, checked as a whole."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import PrivateAttr

from qdpo.config.replace import Reset, check_named, names_of, resets
from qdpo.config.resolve import Resolved, resolve, to_yaml
from qdpo.config.schema import RunConfig
from qdpo.config.strict_yaml import dump
from qdpo.errors import ConfigError, UsageError

Overrides = Mapping[str, Any] | Sequence[str] | None
"""`{"train.max_steps": 50}`, or texts as `--set` takes them: `["train.max_steps=50"]`."""


class Config(RunConfig):
    """Every setting of a run: `config.train.max_steps`, `config.loss.beta`, each with its type.

    It is made by `Config.load` and does not change; printed, it shows every value with where it came from.

    >>> import qdpo
    >>> config = qdpo.Config.load("quickstart", {"train.max_steps": 50})
    >>> config.train.max_steps, config.lora.r
    (50, 16)
    >>> config.change({"loss.beta": 0.3}).loss.beta
    0.3
    """

    _preset: str = PrivateAttr()
    _overrides: tuple[str, ...] = PrivateAttr()
    _resolved: Resolved = PrivateAttr()
    _resets: tuple[Reset, ...] = PrivateAttr(default=())

    @classmethod
    def load(
        cls,
        preset: str | os.PathLike[str],
        overrides: Overrides = None,
        *,
        model: str | None = None,
        data: str | None = None,
    ) -> Self:
        """The configuration that a preset and overrides give.

        Args:
            preset: a shipped preset's name (`qdpo presets` lists them) or a YAML file.
            overrides: settings by their dotted key, as `--set` of the command line takes them.
            model: another base, a hub name or a local folder. What the preset chose for its own does not hold for it
                and goes back to the default, see `resets`.
            data: other preference data, a hub name or a local file, likewise.

        Raises:
            ConfigError: with every mistake that was found, each with its place.
        """
        given = texts_of(overrides)
        reset = resets(os.fspath(preset), given, model, data)
        texts = (*names_of(model, data), *(one.override for one in reset), *given)
        resolved = resolve(os.fspath(preset), texts)
        check_named(resolved)
        config = cls.model_construct(**{name: getattr(resolved.config, name) for name in RunConfig.model_fields})
        config._preset, config._overrides, config._resolved = os.fspath(preset), texts, resolved
        config._resets = tuple(reset)
        return config

    def change(self, overrides: Overrides) -> Self:
        """The same with further overrides.

        Raises:
            ConfigError: as `load` does.
        """
        changed = type(self).load(self._preset, [*self._overrides, *texts_of(overrides)])
        changed._resets = self._resets
        return changed

    @property
    def preset(self) -> str:
        """What it was loaded from: a preset's name or file."""
        return self._preset

    @property
    def overrides(self) -> tuple[str, ...]:
        """What was changed, as `--set` takes it."""
        return self._overrides

    @property
    def resets(self) -> tuple[Reset, ...]:
        """What `model` or `data` of `load` put back to the default; printed, each says what it was and for whom."""
        return self._resets

    @property
    def resolved(self) -> Resolved:
        """Values and origins together, as the rooms below take them."""
        return self._resolved

    @property
    def origins(self) -> dict[str, str]:
        """Where each value came from, by dotted key: `FILE:LINE`, `--set` for an override, or `default`."""
        return self._resolved.origins

    def __str__(self) -> str:
        return to_yaml(self._resolved)


def settled(
    config: str | os.PathLike[str] | Config,
    overrides: Overrides = None,
    *,
    model: str | None = None,
    data: str | None = None,
) -> Config:
    """A configuration given by name, file or `Config`, with overrides, another base and other data.

    Raises:
        ConfigError: a mistake in it, or values that were changed behind its back.
    """
    if not isinstance(config, Config):
        return Config.load(config, overrides, model=model, data=data)
    if any(getattr(config, name) != getattr(config.resolved.config, name) for name in RunConfig.model_fields):
        raise ConfigError(
            "this Config has values that were not given as overrides",
            "make another with config.change({...}), which checks them and knows where they came from",
        )
    if model is not None or data is not None:
        return type(config).load(config.preset, [*config.overrides, *texts_of(overrides)], model=model, data=data)
    return config.change(overrides) if overrides else config


def texts_of(overrides: Overrides) -> list[str]:
    """Overrides as `--set` takes them."""
    if isinstance(overrides, str):
        raise UsageError(f"overrides are a mapping, not the text {overrides!r}", 'such as {"train.max_steps": 50}')
    if isinstance(overrides, Mapping):
        return [f"{key}={_text(value)}" for key, value in overrides.items()]
    return list(overrides or ())


def _text(value: Any) -> str:
    if value is None or isinstance(value, list | tuple | dict):
        return dump(list(value) if isinstance(value, tuple) else value)
    return str(value)
