"""Another base, or other data, in a preset's place: what the preset chose for its own does not hold for them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from qdpo.config import presets
from qdpo.config.overrides import Override, parse_override
from qdpo.config.problems import quoted
from qdpo.config.resolve import EMBEDDED, Resolved, resolve, value_of
from qdpo.config.schema import DataSection, ModelSection, RunConfig
from qdpo.config.strict_yaml import dump
from qdpo.errors import ConfigError

PLACE = tuple(
    f"data.{name}"
    for name in (
        "split",
        "format",
        "columns",
        "ignore",
        "contamination",
        "config",
        "revision",
        "eval_name",
        "eval_split",
    )
)
"""What belongs to one dataset."""
SHARE = ("data.max_rows", "data.max_eval_rows", "data.mixture", "data.ties")
"""How much of a dataset is used."""
BASE = ("model.revision", "model.tokenizer", "model.adapter", "reference", "model.trust_remote_code")
"""What belongs to one base."""
WORDS = ("about", "notes")
"""What is said of a recipe as a whole."""
WARMUP_RATIO = 0.1
"""Of a run whose length is not the preset's: the alignment-handbook's."""


@dataclass(frozen=True)
class Reset:
    """A setting that goes back to what holds for any base and any data.

    Attributes:
        key: the setting.
        value: its new value.
        before: the preset's.
        chosen_for: the base or the data that the preset's value was chosen for.
    """

    key: str
    value: Any
    before: Any
    chosen_for: str

    @property
    def override(self) -> str:
        """As `--set` takes it."""
        return f"{self.key}={_text(self.value)}"

    def __str__(self) -> str:
        before = f"{len(self.before)} remarks" if self.key == "notes" else quoted(_text(self.before))
        value = quoted(_text(self.value)) if self.value not in ("", [], {}, None) else "none"
        return f"{self.key}: {value} instead of {before}, which was chosen for {self.chosen_for}"


def resets(preset: str, overrides: Sequence[str], model: str | None, data: str | None) -> list[Reset]:
    """What another base or other data than the preset's own change in it, beside their names.

    Args:
        preset: a shipped preset's name or a file.
        overrides: as given to `--set`; a setting that they give is left to them.
        model: the other base; None keeps the preset's.
        data: the other data; None keeps the preset's.

    Raises:
        ConfigError: the preset or an override is faulty.
    """
    own_model, own_data = own_names(preset)
    other_model = None if model is None or _same(model, own_model) else own_model
    other_data = None if data is None or _same(data, own_data) else own_data
    if other_model is None and other_data is None:
        return []
    parsed = [found for text in overrides if isinstance(found := parse_override(text), Override)]
    asked = {found.key for found in parsed}
    named = [f"{found.key}={found.text}" for found in parsed if found.key in ("model.name", "data.name")]
    given = resolve(preset, [*names_of(model, data), *named])
    neutral = presets.find(presets.NEUTRAL).label
    reset: dict[str, Reset] = {}
    for key, value, chosen_for in _chosen(given.config, other_model, other_data):
        before = value_of(given.config, key)
        # what the neutral preset says holds for all
        if key not in asked and before != value and not given.origins[key].startswith(f"{neutral}:"):
            reset.setdefault(key, Reset(key, value, before, chosen_for))
    if "train.warmup_steps" in asked:
        reset.pop("train.warmup_ratio", None)
    return list(reset.values())


def elsewhere(model: str | None, data: str | None) -> list[str]:
    """Another place of a base, and other rows, for what was trained before, as overrides: the rest is as it was."""
    belongs = [*(BASE[:2] if model is not None else ()), *(PLACE if data is not None else ())]
    return [*names_of(model, data), *(f"{key}={_text(default_of(key))}" for key in belongs)]


def names_of(model: str | None, data: str | None) -> list[str]:
    """A base and data as overrides, as far as they are given."""
    return [f"{key}={name}" for key, name in (("model.name", model), ("data.name", data)) if name is not None]


def check_named(resolved: Resolved) -> None:
    """Refuse a base with the pairs, or pairs with the base, that only stand in the neutral preset for one's own.

    Raises:
        ConfigError: one of the two is missing.
    """
    neutral = f"{presets.find(presets.NEUTRAL).label}:"
    missing = [section for section in ("model", "data") if resolved.origins[f"{section}.name"].startswith(neutral)]
    if len(missing) == 1:
        what = {"model": "base model", "data": "preference data"}[missing[0]]
        raise ConfigError(
            f"which {what}? The preset {presets.NEUTRAL} has none of its own ({missing[0]}.name)",
            f"--{missing[0]} PATH or hub name",
        )


def own_names(preset: str) -> tuple[str | None, str | None]:
    """The base and the data that a preset names; None where it names none.

    Raises:
        ConfigError: the preset is faulty.
    """
    names: dict[str, str | None] = {"model": None, "data": None}
    for document in presets.load_chain(preset):
        for section in names:
            said = document.values.get(section)
            if isinstance(said, dict) and isinstance(said.get("name"), str):
                names[section] = said["name"]
    return names["model"], names["data"]


def _chosen(given: RunConfig, model: str | None, data: str | None) -> Iterator[tuple[str, Any, str]]:
    """Settings that were chosen for a base or for data that others take the place of: key, neutral value, for what."""
    both = " and ".join(name for name in (model, data) if name is not None)
    if data is not None:
        for key in (*PLACE, *SHARE):
            yield key, default_of(key), data
        if given.data.template == "none":  # for texts that are no conversations
            yield "data.template", default_of("data.template"), data
        for key in ("data.max_length", "data.max_prompt_length"):
            if value_of(given, key) < default_of(key):  # for texts as short as its own
                yield key, default_of(key), data
        yield "samples.answer_key", None, data
        yield "train.max_steps", None, data
        if given.train.warmup_steps:
            yield "train.warmup_steps", 0, data
            yield "train.warmup_ratio", WARMUP_RATIO, data
    if model is not None:
        for key in BASE:
            yield key, default_of(key), model
        if given.data.template != "none":
            yield "data.template", default_of("data.template"), model
        if model == EMBEDDED:
            yield "data.text", default_of("data.text"), model
            for key in ("train.learning_rate", "loss.loss_type", "loss.beta"):
                yield key, default_of(key), model
            for key in ("samples.count", "samples.max_new_tokens"):  # for answers as short as its own
                yield key, default_of(key), model
    for key in ("data.system", *WORDS):
        yield key, default_of(key), both


@cache
def _defaults() -> RunConfig:
    return RunConfig(name="any", model=ModelSection(name="any"), data=DataSection(name="any"))


def default_of(key: str) -> Any:
    """A setting's default in the schema, whatever a preset says."""
    return value_of(_defaults(), key)


def _same(name: str, own: str | None) -> bool:
    """Whether a name is the preset's own; what has none chose nothing for it."""
    return own is None or name == own or os.path.abspath(name) == os.path.abspath(own)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else dump(value)
