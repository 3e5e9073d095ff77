"""Greedy answers that run in circles or break off are told from those that do not."""

from __future__ import annotations

from qdpo.evaluation.written import is_loop
from qdpo.export.verify.answers import compare_answers


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
