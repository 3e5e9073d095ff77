"""Settings for one's own model and data: each follows from what was seen, and the file is a preset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qdpo
from qdpo.config.resolve import value_of
from qdpo.data.split import split_by_prompt
from qdpo.planner.looks import Look
from qdpo.planner.suggest import held_out, name_of, remarks, suggest, to_file

SEEN = Look(
    model="someone/Model-1B",
    family="llama",
    weights=1100.0,
    context=8192,
    template="auto",
    template_reason="the tokenizer's own",
    data="someone/My pairs.v2.jsonl",
    shape="pairs (columns prompt, chosen, rejected (text))",
    rows=2000,
    keys=np.arange(2000),
    lengths=np.tile([100, 200], (2000, 1)),
    eval_split=None,
    own_heldout=False,
    peeked=1000,
    system=0,
    thinking=(0, 0),
    alike=0.2,
)


def of(pairs: int, prompt: int = 100, answer: int = 200, **changes: Any) -> Look:
    return replace(SEEN, lengths=np.tile([prompt, answer], (pairs, 1)), rows=pairs, keys=np.arange(pairs), **changes)


def chosen(seen: Look, *overrides: str) -> dict[str, Any]:
    config = qdpo.Config.load("dpo", overrides, model=seen.model, data=seen.data)
    given = frozenset(text.partition("=")[0] for text in overrides)
    return {one.key: one.value for one in suggest(seen, config, given)}


@pytest.mark.parametrize(
    ("pairs", "least", "most"),
    [(24, 2, 3), (300, 30, 30), (639, 64, 64), (640, 64, 64), (1000, 64, 64), (5000, 250, 250), (60_000, 500, 500)],
)
def test_enough_is_held_out_to_tell(pairs: int, least: int, most: int) -> None:
    seen = of(pairs)
    assert least <= held_out(seen) <= most
    share = chosen(seen)["data.eval_fraction"]
    assert least <= share * pairs
    assert share <= 0.15
    own = chosen(replace(seen, eval_split="test", own_heldout=True))
    assert "data.eval_fraction" not in own
    assert own["data.eval_split"] == "test"
    assert not {"data.eval_fraction", "data.eval_split"} & chosen(replace(seen, own_heldout=True)).keys()


def test_enough_is_held_out_where_prompts_have_several_pairs() -> None:
    keys = np.concatenate([np.zeros(300, int), np.arange(1, 341)])  # 300 pairs of one prompt, 340 of others
    seen = replace(of(640), keys=keys)
    for seed in range(5):
        share = chosen(seen, f"train.seed={seed}")["data.eval_fraction"]
        assert len(split_by_prompt(keys, share, seed)[1]) >= 64


def test_length_of_the_run_follows_the_number_of_pairs() -> None:
    epochs = [chosen(of(pairs))["train.num_train_epochs"] for pairs in (24, 500, 5_000, 50_000)]
    assert epochs == [3.0, 3.0, 2.0, 1.0]
    sizes = [chosen(of(pairs))["train.pairs_per_step"] for pairs in (24, 200, 500, 5_000)]
    assert sizes == [4, 8, 16, 16]
    for pairs in (24, 500, 5_000, 50_000):
        found = chosen(of(pairs))
        steps = found["train.num_train_epochs"] * pairs / found["train.pairs_per_step"]
        assert 1 <= found["train.eval_every"] <= max(steps, 1)
    assert chosen(of(500), "train.max_steps=20")["train.eval_every"] == 10


def test_lengths_follow_the_data() -> None:
    short = chosen(of(100, 30, 40))
    assert (short["data.max_length"], short["data.max_prompt_length"]) == (128, 32)
    # all of them up to 1,024 tokens, then 99 of 100
    lengths = np.tile([100, 200], (1000, 1))
    lengths[:5] = [3000, 3000]
    long = chosen(replace(SEEN, lengths=lengths, keys=np.arange(1000)))
    assert (long["data.max_length"], long["data.max_prompt_length"]) == (1024, 128)
    assert chosen(of(100, 6000, 3000))["data.max_length"] == 4096
    small = chosen(of(100, 90, 100, context=128))
    assert small["data.max_length"] == 128
    assert small["data.max_prompt_length"] < 128
    assert chosen(of(100, 60, 1))["data.max_prompt_length"] < chosen(of(100, 60, 1))["data.max_length"]


@pytest.mark.parametrize(("alike", "loss"), [(0.2, ["sigmoid"]), (0.8, ["sigmoid", "sft"])])
def test_the_loss_follows_how_alike_the_answers_are(alike: float, loss: list[str]) -> None:
    assert chosen(replace(SEEN, alike=alike))["loss.loss_type"] == loss


@pytest.mark.parametrize(("rank", "rate"), [(8, 5e-5), (16, 5e-5), (128, 5e-6)])
def test_the_learning_rate_follows_the_rank(rank: int, rate: float) -> None:
    assert chosen(SEEN, f"lora.r={rank}")["train.learning_rate"] == rate


def test_a_large_model_is_made_for_a_card() -> None:
    assert "gpu_memory_gib" not in chosen(SEEN)
    assert chosen(replace(SEEN, weights=7200.0))["gpu_memory_gib"] == 15
    assert chosen(replace(SEEN, weights=70_000.0))["gpu_memory_gib"] == 78
    assert "gpu_memory_gib" not in chosen(replace(SEEN, weights=None))


def test_what_is_given_is_kept() -> None:
    found = chosen(SEEN, "train.learning_rate=1e-6", "loss.beta=0.3", "data.max_length=77", "data.max_prompt_length=7")
    assert (found["train.learning_rate"], found["loss.beta"], found["data.max_length"]) == (1e-6, 0.3, 77)


def test_thinking_tags_and_system_messages_are_said() -> None:
    assert remarks(SEEN) == []
    found = remarks(replace(SEEN, system=7, thinking=(900, 10)))
    assert "7 of the first 1,000 pairs bring a system message" in found
    assert any("tags alone tell chosen from rejected" in line for line in found)
    assert len(remarks(replace(SEEN, thinking=(900, 880)))) == 1


@pytest.mark.parametrize("changes", [{}, {"weights": 7200.0, "system": 7, "thinking": (900, 10), "alike": 0.9}])
def test_the_file_is_a_preset_of_at_most_forty_lines_with_a_reason_for_each_value(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    seen = replace(SEEN, **changes)
    config = qdpo.Config.load("dpo", model=seen.model, data=seen.data)
    found = suggest(seen, config, frozenset())
    text = to_file(name_of(seen), seen, found)
    assert len(text.splitlines()) <= 40
    (tmp_path / "mine.yaml").write_text(text)
    config = qdpo.Config.load(tmp_path / "mine.yaml")
    assert config.name == "model-1b-my-pairs-v2"
    for one in found:
        assert value_of(config, one.key) == one.value
        assert one.why
        assert "mine.yaml:" in config.origins[one.key]
    assert "presets/dpo.yaml:" in config.origins["lora.r"]
