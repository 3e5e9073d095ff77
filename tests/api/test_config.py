"""`qdpo.Config` and what takes one: overrides of every type, and a config that was changed behind its back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training.tiny import Tiny

import qdpo
from qdpo.config.resolve import resolve, value_of
from qdpo.errors import ConfigError


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.max_steps", 50),
        ("train.learning_rate", 5e-6),
        ("train.gradient_checkpointing", False),
        ("model.dtype", "float32"),
        ("data.system", None),
        ("data.system", "You are a parrot, a green one: 'Polly'"),
        ("lora.target_modules", ["q_proj", "v_proj"]),
        ("data.columns", {"prompt": "question", "chosen": "good, better: best"}),
        ("data.contamination", []),
    ],
)
def test_an_override_arrives_as_it_is(key: str, value: Any) -> None:
    config = qdpo.Config.load("quickstart", {key: value})
    assert value_of(config, key) == value
    assert config.origins[key] == "--set"


def test_numbers_of_numpy_and_paths_are_taken(tmp_path: Path) -> None:
    config = qdpo.Config.load("quickstart", {"train.max_steps": np.int64(3), "train.learning_rate": np.float64(1e-5)})
    assert (config.train.max_steps, config.train.learning_rate) == (3, 1e-5)
    assert qdpo.Config.load("quickstart", {"data.name": tmp_path / "x"}).data.name == str(tmp_path / "x")


def test_it_is_what_the_command_line_resolves(tiny: Tiny) -> None:
    config = qdpo.Config.load(tiny.preset, {"loss.beta": 0.3})
    resolved = resolve(str(tiny.preset), ["loss.beta=0.3"])
    assert config.model_dump() == resolved.config.model_dump()
    assert config.resolved == resolved
    assert "beta: 0.3  # --set" in str(config)
    assert config.change({"lora.r": 2}).overrides == ("loss.beta=0.3", "lora.r=2")
    assert config.lora.r == 4


def test_another_model_leaves_what_the_preset_says_of_its_own(tiny: Tiny) -> None:
    config = qdpo.Config.load("garrulus-t4", model=str(tiny.model), data=str(tiny.train))
    assert (config.model.name, config.model.revision) == (str(tiny.model), None)
    assert (config.data.name, config.data.revision) == (str(tiny.train), None)


def test_a_config_that_was_changed_by_hand_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    config = qdpo.Config.load(tiny.preset)
    changed = config.model_copy(update={"name": "other"})
    with pytest.raises(ConfigError, match=r"config\.change"):
        qdpo.train(changed, run_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"config\.change"):
        qdpo.plan(changed)


def test_every_mistake_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        qdpo.Config.load("quickstart", {"train.max_stepz": 1, "lora.r": "many"})
    assert "train.max_stepz" in str(caught.value)
    assert "lora.r" in str(caught.value)


def test_a_plan_says_what_the_command_says(capsys: pytest.CaptureFixture[str]) -> None:
    from qdpo.cli.main import main

    found = qdpo.plan("garrulus-t4", gpu="t4")
    assert main(["plan", "--preset", "garrulus-t4", "--gpu", "t4"]) == 0
    assert capsys.readouterr().out == f"{found}\n"
    assert found.as_dict()["disk"]["gguf"].keys() >= {"q4_k_m", "q8_0"}
    assert qdpo.plan("garrulus-t4", gpu="t4", auto=True).choices
    with pytest.raises(qdpo.QdpoError, match="hint: "):
        qdpo.plan("garrulus-t4", gpu="t400")


def test_pairs_are_read_as_a_run_reads_them(tiny: Tiny) -> None:
    pairs = qdpo.load_pairs(tiny.train, tiny.preset)
    assert (len(pairs.train), len(pairs.heldout)) == (44, 12)
    text = pairs.text(0)
    assert text["prompt"].startswith("<s>")
    assert "in the" in text["chosen"]
    assert pairs.report["train"]["pairs"] == 44
    assert "44 pairs of 44 rows" in repr(pairs)
    with pytest.raises(qdpo.QdpoError, match="there is no file"):
        qdpo.load_pairs("absent.jsonl", tiny.preset)
