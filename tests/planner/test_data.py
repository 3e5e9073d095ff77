"""Lengths: those of the data where it is at hand, and what is stated of the shipped data is true."""

from __future__ import annotations

import statistics

import pytest
from training.tiny import Tiny

from qdpo.config.resolve import resolve
from qdpo.data.prepare import prepare
from qdpo.model.load import load_tokenizer
from qdpo.planner.data import KNOWN, at_hand, full_pack, lengths_for
from qdpo.planner.lengths import PairLengths, lengths_of


def test_what_is_stated_of_the_embedded_pairs_is_true() -> None:
    config = resolve("quickstart").config
    data = prepare(config.data, load_tokenizer(config.model), config.train.seed)
    known, pairs = KNOWN["quickstart"], lengths_of(data.train)
    assert (known.rows, known.heldout) == (len(data.train), len(data.heldout))
    assert known.longest is not None
    assert max(pair.packed for pair in [*pairs, *lengths_of(data.heldout)]) <= known.longest.packed
    assert known.typical.packed == pytest.approx(statistics.mean(pair.packed for pair in pairs), rel=0.05)


def test_local_data_is_read(tiny: Tiny) -> None:
    config = resolve(str(tiny.preset)).config
    assert at_hand(config)
    found = lengths_for(config)
    data = prepare(config.data, load_tokenizer(config.model), config.train.seed)
    assert found.real
    assert list(found.train) == lengths_of(data.train)
    assert found.steps(config) == 20
    assert all(len(batch) == config.train.pairs_per_step for batch in found.batches(config))
    packs = [*found.reference_packs(config), *found.heldout_packs(config)]
    assert max(pack.tokens for pack in packs) <= config.packing.tokens_without_grad
    assert found.longest_prompt(config) == max(pair.prompt for pair in found.heldout)


def test_without_data_the_limits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdpo.planner.data.at_hand", lambda config: False)
    config = resolve("garrulus-a40", ["data.name=somebody/else", "train.max_steps=null", "data.max_rows=null"]).config
    found = lengths_for(config)
    assert not found.real
    assert found.limit == PairLengths(1024, 512, 512)
    assert found.steps(config) is None
    assert "not at hand" in found.origin


@pytest.mark.parametrize("budget", [100, 2046, 4096, 5000])
def test_a_full_pack_fills_its_budget(budget: int) -> None:
    limit = PairLengths(1024, 512, 512)
    pack = full_pack(limit, budget, 16)
    assert pack.tokens <= max(budget, limit.packed)
    assert pack.tokens > 0.98 * budget
    assert len(full_pack(limit, 10**6, 16).pairs) == 16
