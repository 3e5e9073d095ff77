"""Greedy answers that run in circles or break off are told from those that do not."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from qdpo.export.verify.answers import TAIL, compare_answers, is_loop
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


def test_answers_are_compared_prompt_by_prompt() -> None:
    fine, loop, short = list(range(96)), [1, 2, 3] * 32, [4, 5]
    found = compare_answers([fine, fine, loop, short], [fine, loop, loop, short], [loop, loop, loop, loop], 96)
    assert (found.prompts, found.loops, found.new_loops, found.breaks) == (4, (1, 2, 4), (1, 0), (0, 0))
    found = compare_answers([fine] * 6, [short] * 6, None, 96)
    assert (found.loops, found.breaks, found.lost) == ((0, 0, None), (6, 0), True)
    assert not compare_answers([short] * 6, [fine] * 6, None, 96).breaks[0]


def test_a_circle_that_the_model_leaves_by_itself_is_none() -> None:
    left = [1, 2, 3] * 31
    assert is_loop(left)
    assert compare_answers([left], [left], None, 96).loops == (0, 0, None)


def test_few_more_loops_are_chance_and_many_are_not() -> None:
    fine, loop = list(range(96)), [1, 2, 3] * 32
    assert not compare_answers([fine] * 12, [loop] * 4 + [fine] * 8, None, 96).lost
    assert compare_answers([fine] * 12, [loop] * 5 + [fine] * 7, None, 96).lost
    assert not compare_answers([loop] * 5 + [fine] * 7, [fine] * 5 + [loop] * 7, None, 96).lost, "as many other ones"
