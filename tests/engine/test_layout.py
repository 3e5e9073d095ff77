"""The packed row: what it holds, in which order, and what is scored."""

from __future__ import annotations

import random

import pytest
from engine.toys import make_pairs, words

from qdpo.data.pairs import TokenPair
from qdpo.engine.layout import Segment, build_pack, packed_tokens, padded_tokens


def test_a_pair_is_prompt_chosen_rejected_without_the_last_tokens() -> None:
    pack = build_pack([TokenPair(0, [1, 10, 11], [20, 21, 22], [30, 31])], [7])
    assert pack.input_ids.tolist() == [[1, 10, 11, 20, 21, 30]]
    assert pack.position_ids.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert pack.segments == [Segment(0, 3, 0, 0), Segment(3, 2, 0, 3), Segment(5, 1, 0, 3)]
    assert list(zip(pack.rows.tolist(), pack.targets.tolist(), strict=True)) == [
        (2, 20), (3, 21), (4, 22), (2, 30), (5, 31)
    ]  # fmt: skip
    assert pack.sequence.tolist() == [0, 0, 0, 1, 1]
    assert pack.indices == [7]


def test_a_shared_beginning_is_computed_once_and_scored_for_both() -> None:
    pack = build_pack([TokenPair(0, [1, 10], [20, 21, 22], [20, 21, 33, 34])], [0])
    assert pack.input_ids.tolist() == [[1, 10, 20, 21, 33]]
    assert pack.rows.tolist() == [1, 2, 3, 3, 4]
    assert pack.targets.tolist() == [20, 21, 22, 33, 34]
    assert pack.scored.tolist() == [0, 0, 1, 1, 2, 3, 4]
    assert pack.sequence.tolist() == [0, 1, 0, 1, 0, 1, 1]


def test_rejected_may_end_inside_chosen() -> None:
    pack = build_pack([TokenPair(0, [1], [20, 21, 22], [20, 21])], [0])
    assert pack.input_ids.tolist() == [[1, 20, 21]]
    scored = [(int(s), int(pack.targets[k])) for k, s in zip(pack.scored, pack.sequence, strict=True)]
    assert sorted(scored) == [(0, 20), (0, 21), (0, 22), (1, 20), (1, 21)]


@pytest.mark.parametrize("seed", range(5))
def test_every_completion_token_is_scored_once_by_the_token_before_it(seed: int) -> None:
    pairs = make_pairs(seed)
    pack = build_pack(pairs, range(len(pairs)))
    ids, positions = pack.input_ids[0].tolist(), pack.position_ids[0].tolist()
    n = len(pairs)
    for number in range(2 * n):
        pair = pairs[number % n]
        completion = pair.chosen if number < n else pair.rejected
        whole = pair.prompt + completion
        places = pack.scored[pack.sequence == number].tolist()
        assert [int(pack.targets[place]) for place in places] == completion
        for offset, place in enumerate(places):
            row = int(pack.rows[place])
            assert positions[row] == len(pair.prompt) + offset - 1
            assert ids[row] == whole[positions[row]]


@pytest.mark.parametrize("seed", range(5))
def test_the_sizes_foretold_are_the_sizes_built(seed: int) -> None:
    pairs = make_pairs(seed)
    pack = build_pack(pairs, range(len(pairs)))
    assert pack.n_tokens == sum(packed_tokens(pair) for pair in pairs)
    assert sum(segment.length for segment in pack.segments) == pack.n_tokens
    assert pack.n_pairs == len(pairs)


def test_sharing_saves_the_prompt_and_two_tokens() -> None:
    rng = random.Random(0)
    pair = TokenPair(0, words(rng, 100), [3, *words(rng, 9)], [4, *words(rng, 19)])
    assert padded_tokens(pair) == 230
    assert packed_tokens(pair) == 128
