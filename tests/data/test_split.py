"""What is held out shares no prompt with training, and none that is almost the same; all else is split as ever."""

import json
import random

import numpy as np
import pytest
from data.toy_tokenizers import byte_level

from qdpo.config.schema import DataSection
from qdpo.data.ingest import keys_of
from qdpo.data.pairs import Message, Pair
from qdpo.data.prepare import Prepared, prepare
from qdpo.data.quality import near_prompts
from qdpo.data.quality.near_prompts import NearPrompts
from qdpo.data.split import split_by_prompt, split_keys
from qdpo.data.view import table
from qdpo.model.source import ASSETS

WORDS = [f"word{i}" for i in range(2000)]


def text(draw: random.Random, words: int = 60) -> str:
    return " ".join(draw.choices(WORDS, k=words))


def copies(topics: int, of_each: int) -> list[str]:
    """Prompts of 60 words; of each topic some, which differ in the last word."""
    draw = random.Random(0)
    return [f"{stem} {draw.choice(WORDS)}{i}" for stem in (text(draw) for _ in range(topics)) for i in range(of_each)]


def prepared(tmp_path, prompts: list[str], **settings) -> Prepared:
    rows = [{"prompt": prompt, "chosen": f"yes {i}", "rejected": f"no {i}"} for i, prompt in enumerate(prompts)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataSection(name=str(tmp_path / "a.jsonl"), **{"template": "zephyr", "eval_fraction": 0.2, **settings})
    return prepare(config, byte_level(), 1)


def topics_of(data: Prepared, of_each: int) -> list[set[int]]:
    return [{(pair.row - 1) // of_each for pair in part} for part in (data.train, data.heldout)]


def groups_of(*prompts: str, system: str = "") -> dict[int, int]:
    """Of each prompt (by its place), the place of the first one in its group."""
    found, keys = NearPrompts(), []
    for number, prompt in enumerate(prompts):
        said = (Message("system", system), Message("user", prompt)) if system else (Message("user", prompt),)
        pair = Pair(number, said, (Message("assistant", "a"),), (Message("assistant", "b"),))
        keys.append(keys_of(pair)[3])
        found.observe(pair, keys[-1])
    groups = found.groups()
    group_of = [groups.get(key) for key in keys]
    return {place: group_of.index(group) for place, group in enumerate(group_of) if group is not None}


def test_prompts_that_are_almost_the_same_are_on_one_side(tmp_path):
    data = prepared(tmp_path, copies(30, 3))
    sides = topics_of(data, 3)
    assert not sides[0] & sides[1]
    assert len(data.heldout) == 18, "a fifth of the prompts"
    near = {"looked_at": 90, "groups": 30, "prompts": 90, "largest": 3}
    assert data.train_report.prompts["near"] == near
    assert not any("one group" in remark for remark in data.train_report.remarks())
    cells = [cell for column in table("training", data.train_report).columns for cell in column.cells]
    assert "72 different, 0 empty; 90 of all 90 almost the same as another" in cells
    assert data.heldout_report.prompts["near_in_other_split"] == 0
    records = np.concatenate([data.train.records, data.heldout.records])
    without = split_by_prompt(split_keys(records), 0.2, 1)
    apart = [set(records["group"][places].tolist()) for places in without]
    assert apart[0] & apart[1], "without groups they are on both sides"


def test_without_such_prompts_the_split_is_what_it_was(tmp_path):
    draw = random.Random(0)
    data = prepared(tmp_path, [text(draw) for _ in range(60)])
    assert data.train_report.prompts["near"] == {"looked_at": 60, "groups": 0, "prompts": 0, "largest": 0}
    records = np.concatenate([data.train.records, data.heldout.records])
    keys = [int(key) for key in np.unique(split_keys(records))]
    random.Random(1).shuffle(keys)
    assert set(split_keys(data.heldout.records).tolist()) == set(keys[:12])


@pytest.mark.parametrize("seed", range(20))
def test_groups_of_one_change_nothing(seed: int):
    draw = np.random.default_rng(seed)
    keys = draw.integers(0, 2**63, 40, np.uint64)[draw.integers(0, 40, 100)]
    for share in (0.01, 0.1, 0.5, 0.9):
        assert all(map(np.array_equal, split_by_prompt(keys, share, seed), split_by_prompt(keys, share, seed, keys)))


@pytest.mark.parametrize(
    ("sizes", "share", "held"),
    [
        ([50] + [1] * 50, 0.1, {1}),
        ([5] * 20, 0.01, {5}),
        ([60, 40], 0.1, {40}),
        ([3] * 10 + [1] * 3, 0.1, {1, 3}),
    ],
    ids=["a large group is trained on", "no group is small enough", "two forms", "what fits is taken"],
)
def test_groups_and_the_size_of_the_held_out_part(sizes: list[int], share: float, held: set[int]):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    keys = np.arange(len(groups)).astype(np.uint64)
    for seed in range(10):
        train, heldout = split_by_prompt(keys, share, seed, groups)
        assert not set(groups[train]) & set(groups[heldout])
        assert {sizes[group] for group in groups[heldout]} <= held
        assert 0 < len(heldout) <= max(round(share * len(keys)), min(sizes))


def test_one_form_for_all_prompts_is_split_and_said(tmp_path):
    form = text(random.Random(1))
    data = prepared(tmp_path, [f"{form} {i}" for i in range(50)])
    assert (len(data.train), len(data.heldout)) == (40, 10)
    said = "50 of 50 different prompts are one group of prompts that are almost the same: do they fill in one form?"
    assert said in data.train_report.remarks()
    said = "10 of these pairs have a prompt that the training pairs have too, or almost the same one"
    assert said in data.heldout_report.remarks()


def test_a_split_of_its_own_is_compared_too(tmp_path):
    prompts = copies(4, 2)
    (tmp_path / "held.jsonl").write_text(json.dumps({"prompt": prompts[1], "chosen": "a", "rejected": "b"}) + "\n")
    data = prepared(tmp_path, prompts[::2], eval_name=str(tmp_path / "held.jsonl"))
    assert data.heldout_report.prompts["in_other_split"] == 0
    assert data.heldout_report.prompts["near_in_other_split"] == 1
    assert any("almost the same one" in remark for remark in data.heldout_report.remarks())


STORY = text(random.Random(2), 100)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (STORY, STORY + " more", True),
        (STORY, STORY.upper() + "!", True),
        (STORY, STORY.replace(" ", ", ", 5), True),
        (STORY, STORY.replace(STORY.split()[50], "other"), True),
        (STORY, " ".join(reversed(STORY.split())), False),
        (STORY[:60], STORY[:50], False),
        ("What is 3 + 4?", "What is 3 - 4?", False),
        ("What is the capital of France?", "What is the capital of Spain?", False),
        ("今日は天気がいいので、散歩に行きました。" * 2, "今日は天気がいいので、散歩に行きました。" * 2 + "!", True),
        ("今日は天気がいいので散歩に行きました", "明日は天気がいいので買物に行きます", False),
    ],
)
def test_what_is_almost_the_same(one: str, other: str, alike: bool):
    assert groups_of(one, other) == ({0: 0, 1: 0} if alike else {})


def test_groups_are_chained_and_a_system_message_makes_none():
    words = [f"w{i}" for i in range(100)]
    chain = [" ".join([*words[i:], *(f"v{j}" for j in range(i))]) for i in (0, 3, 6)]
    assert groups_of(chain[0], chain[2]) == {}
    assert groups_of(*chain) == groups_of(chain[0], chain[2], chain[1]) == {0: 0, 1: 0, 2: 0}
    assert groups_of("one thing", "another matter", system=STORY) == {}


def test_estimates_of_long_prompts():
    long = text(random.Random(3), 3000)
    assert groups_of(long, long.replace("word1 ", "word2 ")) == {0: 0, 1: 0}
    assert groups_of(long, text(random.Random(3), 2400) + text(random.Random(4), 600)) == {}


def test_only_the_first_prompts_are_looked_at(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(near_prompts, "LOOKED_AT", 3)
    assert groups_of(STORY, "a", "b", STORY + " more") == {}
    assert groups_of(STORY, "a", STORY + " more", "b") == {0: 0, 2: 0}


def test_real_prompts_of_one_kind_are_no_group():
    """The quickstart's are made from forms."""
    prompts = [json.loads(line)["prompt"] for line in (ASSETS / "pairs" / "train.jsonl").read_text().splitlines()]
    assert len(prompts) > 1000
    assert groups_of(*prompts) == {}
