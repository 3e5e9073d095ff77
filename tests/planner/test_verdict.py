"""The verdict, the knob that it names, and what --auto chooses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qdpo.config.resolve import resolve
from qdpo.errors import UsageError
from qdpo.hardware import GIB, Device
from qdpo.planner.auto import as_it_will_run, choose
from qdpo.planner.cards import CARDS, card_for, card_named, card_of
from qdpo.planner.data import Lengths, lengths_for
from qdpo.planner.estimate import estimate_for
from qdpo.planner.find import find_base
from qdpo.planner.lengths import PairLengths, cut
from qdpo.planner.plan import Plan, plan
from qdpo.planner.settings import with_changes
from qdpo.planner.verdict import TIGHT


@pytest.fixture(autouse=True)
def no_data_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdpo.planner.data.at_hand", lambda config: False)


def planned(preset: str, gpu: str, *overrides: str) -> Plan:
    config = resolve(preset, list(overrides)).config
    card = CARDS[gpu] if gpu in CARDS else replace(CARDS["a40"], memory=round(float(gpu) * GIB))
    return plan(config, find_base(config.model.name), card, "--gpu", lengths_for(config))


def test_the_named_knob_gives_what_it_says() -> None:
    found = planned("garrulus-a40", "6")
    knob = found.verdict.knob
    assert found.verdict.kind != "fits"
    assert knob is not None
    after = planned("garrulus-a40", "6", *knob.setting.split())
    assert found.estimate.total - after.estimate.total == pytest.approx(knob.gives)
    assert (after.verdict.kind == "fits") == knob.fits


LEAST = ("packing.checkpoint_layers=31", "packing.keep_dequantized=0", "train.optim=paged_adamw_32bit")
"""Garrulus with the least memory: nothing is left to the run."""


def test_three_verdicts() -> None:
    need = planned("garrulus-a40", "80", *LEAST).estimate.total / GIB
    sizes = (need * 1.2, need * 1.02, need * 0.9)
    kinds = [planned("garrulus-a40", f"{gib:.3f}", *LEAST).verdict.kind for gib in sizes]
    assert kinds == ["fits", "tight", "does not fit"]


def test_what_is_left_to_the_run_grows_with_the_card_and_never_keeps_a_run_from_fitting() -> None:
    need = planned("garrulus-a40", "80", *LEAST).estimate.total / GIB
    found = [planned("garrulus-a40", f"{gib:.2f}") for gib in (need * 1.06, 15, 24, 30, 45, 80)]
    assert [plan.verdict.kind for plan in found] == ["fits"] * 6
    recomputed = [plan.config.packing.checkpoint_layers for plan in found]
    kept = [plan.config.packing.keep_dequantized for plan in found]
    assert recomputed == sorted(recomputed, reverse=True)
    assert recomputed[0] > 0
    assert recomputed[-1] == 0
    assert kept == sorted(kept)
    assert kept[0] == 0
    assert kept[-1] == 32
    assert not any(again and keep for again, keep in zip(recomputed, kept, strict=True))
    assert [plan.config.train.optim for plan in found[::5]] == ["paged_adamw_32bit", "adamw_torch_fused"]


def test_knobs_that_change_nothing_learned_come_first() -> None:
    need = planned("garrulus-a40", "80", *LEAST).estimate.total / GIB
    knob = planned("garrulus-a40", f"{need * 0.97:.3f}", *LEAST).verdict.knob
    assert knob is not None
    assert knob.setting.startswith("packing.")
    assert not knob.learns_less


@pytest.mark.parametrize("gpu", ["8", "t4", "rtx4090", "h200"])
def test_auto_fits_and_uses_the_card(gpu: str) -> None:
    config = resolve("zephyr-7b-qlora", ["lora.r=16"]).config
    base, card, lengths = find_base(config.model.name), card_named(gpu), lengths_for(config)
    chosen, choices = choose(config, base, card, lengths)
    ran = as_it_will_run(chosen, base, card, lengths)
    assert estimate_for(ran, base, card, lengths).total <= (1 - TIGHT) * card.memory
    again = resolve("zephyr-7b-qlora", ["lora.r=16", *(c.setting for c in choices)]).config
    assert (again.packing, again.train) == (chosen.packing, chosen.train)
    assert all(choice.reason for choice in choices)


def test_a_larger_card_is_never_slower_and_paging_is_for_small_ones() -> None:
    config = resolve("zephyr-7b-qlora").config
    base, lengths = find_base(config.model.name), lengths_for(config)
    cards = [card_named(gpu) for gpu in ("10", "h200")]
    ran = [as_it_will_run(choose(config, base, card, lengths)[0], base, card, lengths) for card in cards]
    assert ran[0].packing.checkpoint_layers > ran[1].packing.checkpoint_layers
    assert ran[0].train.optim == "paged_adamw_32bit"  # 2.7 GB of states do not fit beside the rest in 10 GiB
    assert ran[1].train.optim == "adamw_torch_fused"


def test_longer_pairs_and_larger_budgets_need_more() -> None:
    config = resolve("garrulus-a40").config
    base, card = find_base(config.model.name), card_named("a40")

    def total(length: int, budget: int) -> float:
        pairs = [PairLengths(length, length, length)] * 32
        lengths = Lengths(pairs, pairs, 32, 32, True, "made up", pairs[0])
        changed = with_changes(config, "packing", tokens_per_micro_batch=budget, tokens_without_grad=budget)
        return estimate_for(changed, base, card, lengths).total

    assert total(50, 1024) < total(50, 4096)
    assert total(50, 4096) < total(500, 4096) + 0.2 * GIB
    assert total(500, 1024) < total(1000, 1024)  # a single pair may exceed the budget


def test_packs_are_cut_as_the_engine_cuts_them() -> None:
    from qdpo.data.pairs import TokenPair
    from qdpo.engine.layout import build_pack
    from qdpo.engine.layouts import cut_packed as engine_cut
    from qdpo.planner.lengths import lengths_of

    pairs = [TokenPair(i, [1] * (5 + i % 7), [2] * (i % 4) + [3] * 5, [2] * (i % 3) + [4] * 9) for i in range(30)]
    mine = cut(lengths_of(pairs), 90)
    theirs = [build_pack([pairs[i] for i in group], group) for group in engine_cut(pairs, 90)]
    assert [p.tokens for p in mine] == [p.n_tokens for p in theirs]
    assert [p.scored for p in mine] == [len(p.rows) for p in theirs]
    assert [p.scored_rows for p in mine] == [len(p.scored_rows) for p in theirs]
    assert [p.segments for p in mine] == [[(s.length, s.prefix_length) for s in p.segments] for p in theirs]


def test_cards() -> None:
    assert card_named("T4") is CARDS["t4"]
    assert card_named("23.5").memory == round(23.5 * GIB)
    for wrong in ("t5", "0", "-3", "1e9", "nan", ""):
        with pytest.raises(UsageError):
            card_named(wrong)
    found = card_of(Device("cuda", "Tesla T4", (7, 5), 15 * GIB))
    assert (found.memory, found.tflops) == (15 * GIB, CARDS["t4"].tflops)
    assert card_of(Device("cuda", "NVIDIA A40", (8, 6), 44 * GIB)).tflops == CARDS["a40"].tflops
    assert card_of(Device("cuda", "Something new", (13, 0), 40 * GIB)).memory == 40 * GIB
    assert card_for("t4", "", None)[0].name == "NVIDIA T4"


def test_a_card_without_bfloat16_is_told() -> None:
    assert "model.dtype=float16" in planned("neuralhermes-7b", "t4").dtype[1]
    assert planned("garrulus-a40", "t4").dtype[0] == "float16"
