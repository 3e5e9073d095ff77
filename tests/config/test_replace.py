"""Another base or other data in a preset's place: what was chosen for its own goes, what the user gives stays."""

from __future__ import annotations

import pytest

import qdpo
from qdpo.config import presets
from qdpo.config.resolve import EMBEDDED, value_of
from qdpo.errors import ConfigError

MODEL, DATA = "someone/model", "someone/pairs"
OF_DATA = {
    "garrulus-a40": {
        **{"data.config": None, "data.eval_split": None, "data.max_rows": None, "data.max_eval_rows": None},
        **{"data.format": "auto", "data.template": "auto", "data.contamination": []},
        **{"train.max_steps": None, "train.warmup_steps": 0, "train.warmup_ratio": 0.1, "about": "", "notes": []},
    },
    "zephyr-7b-qlora": {"data.split": "train", "data.eval_split": None, "data.system": None, "about": "", "notes": []},
    "quickstart": {
        **{"data.eval_split": None, "data.max_length": 1024, "data.max_prompt_length": 512},
        "samples.answer_key": None,
        **{"train.max_steps": None, "train.warmup_steps": 0, "train.warmup_ratio": 0.1, "about": "", "notes": []},
    },
    "dpo": {},
}
OF_MODEL = {
    "garrulus-a40": {"about": "", "notes": []},
    "zephyr-7b-qlora": {"data.template": "auto", "data.system": None, "about": "", "notes": []},
    "quickstart": {
        "data.text": None,
        "train.learning_rate": 5e-5,
        "loss.loss_type": ["sigmoid"],
        "loss.beta": 0.1,
        "samples.count": 48,
        "samples.max_new_tokens": 64,
        "about": "",
        "notes": [],
    },
}


@pytest.mark.parametrize("preset", OF_DATA)
def test_other_data(preset: str) -> None:
    model = MODEL if preset == presets.NEUTRAL else None
    config = qdpo.Config.load(preset, data=DATA, model=model)
    assert {reset.key: reset.value for reset in config.resets} == OF_DATA[preset]
    for key, value in OF_DATA[preset].items():
        assert value_of(config, key) == value
    assert config.data.name == DATA


@pytest.mark.parametrize("preset", OF_MODEL)
def test_another_model(preset: str) -> None:
    config = qdpo.Config.load(preset, model=MODEL)
    assert {reset.key: reset.value for reset in config.resets} == OF_MODEL[preset]


def test_the_recipe_itself_stays() -> None:
    own, other = qdpo.Config.load("garrulus-a40"), qdpo.Config.load("garrulus-a40", model=MODEL, data=DATA)
    for key in ("lora", "loss", "packing", "data.max_length", "train.learning_rate", "train.pairs_per_step"):
        assert value_of(other, key) == value_of(own, key)


def test_the_same_model_and_data_change_nothing() -> None:
    own = qdpo.Config.load("garrulus-a40")
    same = qdpo.Config.load("garrulus-a40", model=own.model.name, data=own.data.name)
    assert same.resets == ()
    assert same.model_dump() == own.model_dump()


def test_what_is_given_stays_as_it_is_given() -> None:
    given = ["train.max_steps=7", "data.template=zephyr", "train.warmup_steps=3", "notes=[mine]"]
    config = qdpo.Config.load("garrulus-a40", given, model=MODEL, data=DATA)
    assert (config.train.max_steps, config.data.template, config.notes) == (7, "zephyr", ["mine"])
    assert (config.train.warmup_steps, config.train.warmup_ratio) == (3, 0.0)
    assert not {"train.max_steps", "data.template", "train.warmup_ratio"} & {reset.key for reset in config.resets}
    # the preset's own warm-up in steps does not stand in the way of one that is given as a share
    config = qdpo.Config.load("garrulus-a40", ["train.warmup_ratio=0.2"], data=DATA)
    assert (config.train.warmup_steps, config.train.warmup_ratio) == (0, 0.2)


def test_each_says_what_it_was_and_for_whom() -> None:
    said = {reset.key: str(reset) for reset in qdpo.Config.load("garrulus-a40", data=DATA).resets}
    assert said["data.template"] == "data.template: `auto` instead of `none`, which was chosen for allenai/winogrande"
    assert said["notes"] == "notes: none instead of 5 remarks, which was chosen for allenai/winogrande"
    assert all("\n" not in line for line in said.values())
    assert qdpo.Config.load("garrulus-a40", data=DATA).change({"loss.beta": 0.2}).resets


@pytest.mark.parametrize(("given", "missing"), [({"model": MODEL}, "data"), ({"data": DATA}, "model")])
def test_the_neutral_preset_needs_both(given: dict[str, str], missing: str) -> None:
    with pytest.raises(ConfigError, match=rf"\({missing}\.name\)") as caught:
        qdpo.Config.load(presets.NEUTRAL, **given)
    assert f"--{missing}" in str(caught.value.hint)
    # by itself it is a recipe that can be shown and tried
    assert qdpo.Config.load(presets.NEUTRAL).data.name == EMBEDDED
