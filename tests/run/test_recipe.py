"""Where a run's settings came from, and which of its preset's own words still hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdpo.config import presets
from qdpo.config.resolve import resolve, to_yaml
from qdpo.run.recipe import read_recipe, recipe_of, with_first_origins
from qdpo.run.schema import Recipe, Record

OTHER = ("model.name=me/other", "model.revision=null", "data.name=my.jsonl", "data.config=null", "data.format=auto")


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_as_it_ships_says_everything_of_itself(name: str) -> None:
    assert recipe_of(name, resolve(name)) == Recipe(preset=name, changed=[], named=True, noted=True)


@pytest.mark.parametrize(
    ("overrides", "changed", "named", "noted"),
    [
        (OTHER, ["model.name", "data.name"], False, False),
        ((*OTHER, "data.template=chatml"), ["model.name", "data.name", "data.template"], False, False),
        (("train.max_steps=7", "loss.beta=0.3"), ["loss.beta", "train.max_steps"], True, False),
        (("samples.count=2", "packing.tokens_per_micro_batch=512", "train.log_every=1", "name=mine"), [], True, True),
        (("train.seed=42", "train.max_steps=200"), [], True, True),  # as the preset has them
        (("data.config=null",), ["data.config"], True, False),  # no reset: the dataset is the preset's own
    ],
)
def test_what_was_changed(overrides: tuple[str, ...], changed: list[str], named: bool, noted: bool) -> None:
    found = recipe_of("garrulus-a40", resolve("garrulus-a40", overrides))
    assert (found.preset, found.changed, found.named, found.noted) == ("garrulus-a40", changed, named, noted)


def test_a_file_that_extends_a_preset(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: garrulus-a40\nname: mine\ndata:\n  name: my.jsonl\n")
    found = recipe_of(str(mine), resolve(str(mine)))
    assert (found.preset, found.changed) == ("garrulus-a40", ["data.name"]), "whose description is another's"
    assert found.named, "it has a name of its own"
    assert not found.noted
    mine.write_text(mine.read_text().replace("name: mine\n", "name: mine\nabout: my pairs\nnotes: [mine]\n"))
    found = recipe_of(str(mine), resolve(str(mine)))
    assert found == Recipe(preset="mine.yaml", changed=[], named=True, noted=True), "it describes itself"


def test_a_run_that_kept_none_is_read_by_its_origins(tmp_path: Path) -> None:
    resolved = resolve("garrulus-a40", OTHER)
    (tmp_path / "config.yaml").write_text(to_yaml(resolved))
    found = read_recipe(tmp_path, resolved.config, Record(preset="garrulus-a40"))
    assert found == recipe_of("garrulus-a40", resolved)
    kept = Recipe(preset="p", changed=["loss.beta"], named=True, noted=True)
    assert read_recipe(tmp_path, resolved.config, Record(preset="p", recipe=kept)) == kept


def test_the_words_of_a_chain_that_is_known_by_its_origins_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: garrulus-a40\nmodel:\n  name: me/other\n")
    resolved = resolve(str(mine), ["loss.beta=0.2"])
    (tmp_path / "config.yaml").write_text(to_yaml(resolved))
    found = read_recipe(tmp_path, resolved.config, Record(preset=str(mine)))
    assert found == Recipe(preset="garrulus-a40", changed=["model.name", "loss.beta"], named=False, noted=False)


def test_a_run_that_goes_on_keeps_where_its_settings_came_from(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(resolve("garrulus-a40", OTHER)))
    again = resolve(str(tmp_path / "config.yaml"), ["train.max_steps=9"])
    assert again.origins["loss.beta"].startswith(str(tmp_path))
    found = with_first_origins(tmp_path, again)
    assert found.config == again.config
    assert found.origins["loss.beta"].startswith("presets/garrulus-a40.yaml:")
    assert found.origins["data.name"] == "--set"
    assert (found.origins["train.max_steps"], found.origins["engine"]) == ("--set", "default")
    (tmp_path / "config.yaml").write_text(to_yaml(found))
    record = Record(preset="garrulus-a40")
    assert read_recipe(tmp_path, found.config, record).changed == ["model.name", "data.name", "train.max_steps"]
