"""What is broken among written answers is found, and what is not is left alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import AutoTokenizer

from qdpo.evaluation.written import TAIL, Change, fault_finder, is_loop, overlap, repeated, written_of
from qdpo.model.source import ASSETS

# What small models wrote in a rounding that had broken them, cut like the answers of a verification.
LOOPING = [
    "The capital of France is the City of" + 20 * " the City of",
    "I am not sure." + 15 * " I am not sure.",
    "".join(f"{i}. Mix the flour with the water and knead the dough until it is smooth.\n" for i in range(1, 6)),
    "no" + 39 * " no",
]
FINE = [
    "To make bread, mix flour, water, yeast and salt. Knead the dough for ten minutes until it is smooth and elastic. "
    "Let it rise in a warm place for an hour, shape it, let it rise again, and bake it in a hot oven until it sounds "
    "hollow when you tap its bottom. Let it cool on a rack before you cut it.",
    "1. Wash the rice.\n2. Boil the water with some salt.\n3. Add the rice and stir it once.\n4. Turn the heat down "
    "and cover the pot.\n5. Wait for eighteen minutes.\n6. Take the pot off the heat.\n7. Let it stand for five "
    "minutes.\n8. Loosen the rice with a fork and serve it.",
    "Monday: rain, 12 degrees. Tuesday: sun, 17 degrees. Wednesday: clouds, 15 degrees. Thursday: wind, 11 degrees. "
    "Friday: snow, 1 degree. Saturday: fog, 4 degrees. Sunday: sun, 9 degrees, and then a storm in the evening.",
    "def area(width, height):\n    return width * height\n\ndef volume(width, height, depth):\n    return area(width, "
    "height) * depth\n\ndef surface(width, height, depth):\n    return 2 * (width * height + width * depth + height * "
    "depth)",
]


def ids_of(text: str) -> list[int]:
    """By the quickstart's tokenizer, whose tokens for foreign words are letters and parts of words."""
    return [int(i) for i in AutoTokenizer.from_pretrained(ASSETS / "base").encode(text, add_special_tokens=False)]


def words_of(text: str) -> list[int]:
    """A token a word, as large vocabularies have it."""
    words = text.replace("\n", " ").split()
    return [sorted(set(words)).index(word) for word in words]


@pytest.mark.parametrize("text", LOOPING)
def test_circles_are_found(text: str) -> None:
    assert is_loop(words_of(text))


@pytest.mark.parametrize("text", FINE)
def test_lists_recipes_and_code_are_no_circles(text: str) -> None:
    assert not is_loop(words_of(text))
    assert not is_loop(ids_of(text))


def test_letters_that_repeat_are_found_by_their_tokens() -> None:
    assert is_loop(ids_of(LOOPING[3]))


def test_one_token_in_ten_may_differ_and_no_more() -> None:
    circle = [1, 2, 3, 4] * 20
    assert is_loop(circle)
    circle[-10] = 99
    assert is_loop(circle)
    for place in range(1, TAIL, 9):
        circle[-place] = 100 + place
    assert not is_loop(circle)
    assert not is_loop(list(range(100)))
    assert is_loop([*range(100, 200), *[1, 2, 3, 4] * 16]), "however it begins"


def test_what_is_short_says_nothing() -> None:
    assert not is_loop([7] * 20)
    assert is_loop([7] * 30)
    assert not is_loop([])


def test_an_end_that_repeats_counts_only_at_the_end() -> None:
    assert not is_loop([7] * 60 + list(range(1000, 1064)))


# --- faults -----------------------------------------------------------------------------------------------------------


def row(policy: str = "the trophy was too big.", sample: int = 0, **changes: Any) -> dict[str, Any]:
    """A line of samples.jsonl whose answers are in order."""
    line = {
        "step": 40,
        "sample": sample,
        "prompt": "The trophy did not fit in the suitcase because",
        "row": sample,
        "chosen": "the trophy was too big.",
        "rejected": "the suitcase was too big.",
        "base": "the suitcase was too small.",
        "policy": policy,
        "chosen_nats": 0.2 + 0.001 * sample,
        "base_ended": True,
        "base_loops": False,
        "base_nats": 0.15,
        "base_known": None,
        "policy_ended": True,
        "policy_loops": False,
        "policy_nats": 0.21,
        "policy_known": None,
    }
    return {**line, **changes}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"policy": "   "}, "empty"),
        ({"policy_loops": True, "policy_ended": False}, "in circles"),
        (
            {"policy": "\u043e\u043d \u0431\u044b\u043b \u0431\u043e\u043b\u044c\u0448\u043e\u0439."},
            "in another script",
        ),
        ({"policy_nats": 1.1}, "unlikely under the base"),
        ({"policy": "the farmer played sell it.", "policy_nats": 2.4}, "unlikely under the base"),
        ({"policy": "4.", "policy_nats": None}, None),
    ],
)
def test_each_fault_is_found_and_named(changes: dict[str, Any], fault: str | None) -> None:
    rows = [row(sample=i) for i in range(40)]
    rows[7] |= changes
    find = fault_finder(rows)
    assert find(rows[7], "policy") == fault
    assert find(rows[7], "base") is None
    (written,) = written_of(rows)
    assert written.broken is not None
    assert (written.broken.after, written.broken.before) == (int(fault is not None), 0)
    assert written.faults == ({fault: 1} if fault else {})


def test_the_data_may_bring_another_script() -> None:
    there = "\u0431\u043e\u043b\u044c\u0448\u043e\u0439 \u043a\u0443\u0431\u043e\u043a"
    rows = [row(there, i, chosen=there) for i in range(30)]
    assert all(fault_finder(rows)(line, "policy") is None for line in rows)


def test_numbers_without_measures_are_those_of_the_texts() -> None:
    """Lines of a version that did not measure: words and repetition are known, and nothing else is claimed."""
    old = {"step": 0, "prompt": "p", "base": "a b", "policy": "a b c d"}
    (written,) = written_of([old])
    assert written.words == (2, 4)
    assert (written.broken, written.ended, written.right, written.nats) == (None, None, None, None)
    assert "broken" not in written.line()


def test_change_says_n_interval_and_what_it_was() -> None:
    change = Change.of([False] * 40 + [True] * 8, [True] * 12 + [False] * 28 + [True] * 8)
    assert change is not None
    assert (change.n, change.before, change.after) == (48, 8, 20)
    assert change.p_value == pytest.approx(2 / 2**12)
    assert str(change) == "42% [29%, 56%] (17% before)"
    assert change.grown == pytest.approx(0.25)
    assert Change.of([], []) is None


def test_answers_are_counted_by_the_key_and_by_what_they_are_near_to() -> None:
    rows = [row(sample=i, base_known="wrong", policy_known="right" if i < 6 else "other") for i in range(8)]
    rows += [row(sample=8), row("the suitcase was too big.", 9)]
    (written,) = written_of(rows)
    assert written.right is not None
    assert written.wrong is not None
    assert written.nearer_chosen is not None
    assert (written.right.n, written.right.before, written.right.after) == (8, 0, 6)
    assert (written.wrong.before, written.wrong.after) == (8, 0)
    # the base's "the suitcase was too small." is nearer to the rejected answer, by "suitcase"
    assert (written.nearer_chosen.n, written.nearer_chosen.before, written.nearer_chosen.after) == (10, 0, 9)
    assert "right 75%" in written.line()
    assert "of 10 that tell" in written.line()


def test_overlap_and_repetition() -> None:
    assert overlap("The cat sat.", "the CAT sat.") == 1
    assert overlap("a b c d", "c d e f") == pytest.approx(0.5)
    assert overlap("", "a") == overlap("a", "b") == 0
    assert repeated("a b c d " * 10) > 0.8
    assert repeated("a b c d e f g") == repeated("a") == 0


def test_the_embedded_key_agrees_with_the_pairs() -> None:
    pairs = [json.loads(line) for line in (ASSETS / "pairs" / "heldout.jsonl").read_text().splitlines()]
    keys = [json.loads(line) for line in (ASSETS / "pairs" / "answer_key.jsonl").read_text().splitlines()]
    by_prompt = {key["prompt"]: key for key in keys}
    assert len(by_prompt) == len(keys) == len({pair["prompt"] for pair in pairs}) == 191
    for pair in pairs:
        assert pair["chosen"] in by_prompt[pair["prompt"]]["right"]
        assert pair["rejected"] in by_prompt[pair["prompt"]]["wrong"]
    assert all(
        len(key["right"]) == len(key["wrong"]) == 2 and not set(key["right"]) & set(key["wrong"]) for key in keys
    )
