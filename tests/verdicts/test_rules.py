"""Every kind of curve gets its verdict, under noise and in several shapes; published runs raise no alarm."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from materials import MATERIAL
from report import curves
from report.curves import Shape, draw

from qdpo.config.loss import LossSettings
from qdpo.engine import losses
from qdpo.evaluation.written import Change, Written
from qdpo.verdicts.evidence import Evidence, Setup
from qdpo.verdicts.rules import ALARMS, Verdict, dip_margin, judge
from qdpo.verdicts.trends import accuracy_noise, jitter, level, share_rising, smooth

CARDS = MATERIAL / "cards"

DPO = Shape()
LOW_BETA = Shape(setup=Setup(beta=0.01, learning_rate=5e-6))
SHORT = Shape(steps=60, eval_every=20, log_every=5)
WARMUP = Shape(setup=Setup(warmup=100, learning_rate=5e-5))
FEW_PAIRS = Shape(pairs=40, batch=8, log_every=1, steps=100, eval_every=25)
LONG = Shape(steps=1900, eval_every=100, log_every=10, batch=32, pairs=64)
DISCOPOP = Shape(setup=Setup(("discopop",), beta=0.05, tau=0.05))

CASES: dict[str, tuple[str, Callable[[Shape], Evidence], Shape]] = {
    "learns": ("learning", lambda s: draw(curves.learns(0.1), s), DPO),
    "learns, low beta": ("learning", lambda s: draw(curves.learns(0.01), s), LOW_BETA),
    "learns in few steps": ("learning", lambda s: draw(curves.learns(0.1), s), SHORT),
    "learns after a long warmup": ("learning", lambda s: draw(curves.learns(0.1), s), WARMUP),
    "learns on few pairs": ("learning", lambda s: draw(curves.learns(0.1), s), FEW_PAIRS),
    "learns for long": ("learning", lambda s: draw(curves.learns(0.1), s), LONG),
    "learns, both rewards falling": ("learning", lambda s: draw(curves.learns(0.1, fall=0.6), s), DPO),
    "learns, both falling far, low beta": ("learning", lambda s: draw(curves.learns(0.01, fall=0.8), s), LOW_BETA),
    "learns a little from hard pairs": ("learning", lambda s: draw(curves.learns(0.1, 0.5), s), DPO),
    "learns, answers somewhat longer": (
        "learning",
        lambda s: draw(curves.learns(0.1), s, answers=curves.chatty(200, 20, 100)),
        DPO,
    ),
    "learns, length of no matter": (
        "learning",
        lambda s: draw(curves.learns(0.1), s, lengths=curves.longer_wins(0.8, 0.72)),
        DPO,
    ),
    "stands still": ("not learning", lambda s: draw(curves.stands(0.1), s), DPO),
    "stands still, few steps": ("not learning", lambda s: draw(curves.stands(0.1), s), SHORT),
    "moves without telling pairs apart": ("not learning", lambda s: draw(curves.idles(0.1, 4), s), DPO),
    "the same, low beta": ("not learning", lambda s: draw(curves.idles(0.01, 20), s), LOW_BETA),
    "the same, few pairs": ("not learning", lambda s: draw(curves.idles(0.1, 6), s), FEW_PAIRS),
    "columns swapped": ("not learning", lambda s: draw(curves.swapped(0.1), s), DPO),
    "stuck in DiscoPOP's minimum": ("not learning", lambda s: draw(curves.dips(0.05, 0.05, False), s), DISCOPOP),
    "creeps": ("learning rate too low", lambda s: draw(curves.creeps(0.1, 0.02), s), DPO),
    "creeps, low beta": ("learning rate too low", lambda s: draw(curves.creeps(0.01, 0.004), s), LOW_BETA),
    "creeps unseen": ("learning rate too low", lambda s: draw(curves.creeps(0.1, 0.0003), s), DPO),
    "creeps for long": ("learning rate too low", lambda s: draw(curves.creeps(0.1, 0.02), s), LONG),
    "diverges": ("learning rate too high", lambda s: draw(curves.diverges(0.1, 6), s), DPO),
    "diverges far": ("learning rate too high", lambda s: draw(curves.diverges(0.1, 40), s), FEW_PAIRS),
    "diverges, low beta": ("learning rate too high", lambda s: draw(curves.diverges(0.01, 5), s), LOW_BETA),
    "breaks": ("learning rate too high", lambda s: draw(curves.breaks(0.1, 3, 100), s), DPO),
    "saturates": ("saturated", lambda s: draw(curves.saturates(0.1), s), DPO),
    "saturates, low beta": ("saturated", lambda s: draw(curves.saturates(0.01), s), LOW_BETA),
    "saturates for long": ("saturated", lambda s: draw(curves.saturates(0.1), s), LONG),
    "over-fits": ("over-fitting", lambda s: draw(curves.over_fits(0.1, 0.4, 3), s), DPO),
    "over-fits early": ("over-fitting", lambda s: draw(curves.over_fits(0.1, 0.2, 4), s), DPO),
    "over-fits, low beta": ("over-fitting", lambda s: draw(curves.over_fits(0.01, 0.4, 3), s), LOW_BETA),
    "over-fits for long": ("over-fitting", lambda s: draw(curves.over_fits(0.1, 0.5, 4), s), LONG),
    "held-out margin shrinks": ("over-fitting", lambda s: draw(curves.forgets(0.1), s), DPO),
    "held-out margin shrinks, low beta": ("over-fitting", lambda s: draw(curves.forgets(0.01), s), LOW_BETA),
    "chosen collapse": ("degenerate", lambda s: draw(curves.collapses(0.1, 1.6, 200), s), DPO),
    "chosen collapse, lengths unknown": ("degenerate", lambda s: draw(curves.collapses(0.1, 2.0, 200), s), DPO),
    "chosen collapse, low beta": ("degenerate", lambda s: draw(curves.collapses(0.01, 1.8, 250), s), LOW_BETA),
    "answers repeat themselves": (
        "degenerate",
        lambda s: draw(curves.learns(0.1), s, answers=curves.chatty(200, 20, 90, repeated=0.5)),
        DPO,
    ),
    "answers grow": (
        "length-hacking",
        lambda s: draw(curves.learns(0.1), s, answers=curves.chatty(200, 20, 190)),
        DPO,
    ),
    "only longer sides win": (
        "length-hacking",
        lambda s: draw(curves.learns(0.1), s, lengths=curves.longer_wins(0.92, 0.41)),
        DPO,
    ),
    "DiscoPOP after its dip": ("learning", lambda s: draw(curves.dips(0.05, 0.05, True), s), DISCOPOP),
}


def upto(evidence: Evidence, step: int) -> Evidence:
    """What was known when the run was at a step."""
    return Evidence(
        [row for row in evidence.train if row["step"] <= step],
        [row for row in evidence.evals if row["step"] <= step],
        evidence.setup,
        [entry for entry in evidence.answers if entry.step <= step],
        evidence.lengths,
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", CASES)
def test_verdict(name: str, seed: int) -> None:
    kind, make, shape = CASES[name]
    evidence = make(replace(shape, seed=seed))
    found = judge(evidence)
    assert found[0].kind == kind, [verdict.line() for verdict in found]
    assert all(re.search(r"\d", verdict.says) for verdict in found), "a verdict quotes its numbers"
    assert all(verdict.source for verdict in found)
    assert all(verdict.change for verdict in found if verdict.alarm), "an alarm says what to change"
    assert len({verdict.kind for verdict in found}) == len(found)


def test_there_are_forty_kinds_of_curves() -> None:
    assert len(CASES) >= 40
    assert {kind for kind, _, _ in CASES.values()} == {
        *("learning", "not learning", "saturated", "over-fitting", "degenerate", "length-hacking"),
        *("learning rate too high", "learning rate too low"),
    }


@pytest.mark.parametrize("name", [name for name, (kind, _, _) in CASES.items() if kind in ("learning", "saturated")])
def test_a_good_run_never_raises_an_alarm_on_its_way(name: str) -> None:
    _, make, shape = CASES[name]
    for seed in range(3):
        evidence = make(replace(shape, seed=seed))
        for row in evidence.evals:
            found = judge(upto(evidence, row["step"]))
            assert not any(verdict.alarm for verdict in found), (row["step"], [v.line() for v in found])


def test_the_dip_is_expected_while_it_lasts() -> None:
    evidence = draw(curves.dips(0.05, 0.05, True), DISCOPOP)
    (verdict, *_) = judge(upto(evidence, 40))
    assert (verdict.kind, verdict.alarm) == ("early dip", False)
    assert "-0.118" in verdict.says or "-0.119" in verdict.says
    plain = replace(evidence, setup=replace(evidence.setup, loss_type=("sigmoid",)))
    assert judge(upto(plain, 40))[0].kind != "early dip", "another loss has no such dip"


def test_dip_margin_is_the_loss_own_local_minimum() -> None:
    import torch

    at = dip_margin(0.05)
    assert at / 0.05 == pytest.approx(-2.3714, abs=0.01)
    settings = LossSettings(loss_type=["discopop"], beta=0.05, discopop_tau=0.05)
    d = torch.linspace(-5, 1, 601, dtype=torch.float64)
    zeros, ones = torch.zeros_like(d), torch.ones_like(d)
    batch = losses.PairLogps(d, zeros, zeros, zeros, ones, ones, 1.0)
    found = losses.pair_losses(batch, settings)
    assert float(d[found.argmin()]) * 0.05 == pytest.approx(at, abs=1e-3)


def test_both_rewards_falling_is_called_normal() -> None:
    found = judge(draw(curves.learns(0.1, fall=0.6), DPO))
    assert [verdict.kind for verdict in found] == ["learning", "both rewards fall"]
    assert "normal" in found[1].says
    assert not found[1].alarm
    assert [verdict.kind for verdict in judge(draw(curves.learns(0.1), DPO))] == ["learning"]


def test_too_early_before_anything_can_be_seen() -> None:
    evidence = draw(curves.creeps(0.1, 0.02), DPO)
    assert judge(Evidence([], []))[0].kind == "too early"
    assert judge(upto(evidence, 0))[0].kind == "too early"
    assert judge(upto(evidence, 20))[0].kind == "too early"
    slow = draw(curves.stands(0.1), WARMUP)
    assert judge(upto(slow, 120))[0].kind == "too early", "the warmup is not the run"
    assert judge(slow)[0].kind == "not learning"


def test_what_to_change_names_settings_that_exist() -> None:
    from qdpo.config.fields import settings

    said = " ".join(
        verdict.change for kind, make, shape in CASES.values() for verdict in judge(make(shape)) if verdict.alarm
    )
    named = set(re.findall(r"\b(?:train|loss|data|model|lora)\.[a-z_]+", said))
    assert len(named) >= 6
    assert named <= set(settings()), named - set(settings())


def test_the_swapped_columns_are_named() -> None:
    assert "swapped" in judge(draw(curves.swapped(0.1), DPO))[0].change


def test_nothing_moves_names_the_invariant() -> None:
    verdict = judge(draw(curves.stands(0.1), DPO))[0]
    assert "every adapter learns" in verdict.change
    assert "0.6931" in verdict.says


def test_rates_are_suggested_in_numbers() -> None:
    evidence = draw(curves.creeps(0.1, 0.0003), replace(DPO, setup=Setup(learning_rate=1e-6)))
    assert "now 1e-06, try 1e-05" in judge(evidence)[0].change


# ------------------------------------------------------------------------------------------------ the published tables


def published(card: str) -> list[dict[str, Any]]:
    """The rows of a card's table of training results."""
    lines = [line for line in card.splitlines() if line.startswith("|")]
    start = next(i for i, line in enumerate(lines) if line.startswith("| Training Loss"))
    names = [cell.strip() for cell in lines[start].strip("|").split("|")]
    rows = []
    for line in lines[start + 2 :]:
        cells = dict(zip(names, (cell.strip() for cell in line.strip("|").split("|")), strict=False))
        if len(cells) < 12:
            break
        rows.append({name: math.nan if text == "-" else float(text) for name, text in cells.items()})
    return rows


def evidence_of_card(card: str, beta: float) -> Iterator[Evidence]:
    """What the published rows would have said at each of them."""
    rows = published(card)
    train = [{"step": int(row["Step"]), "loss": row["Training Loss"]} for row in rows]
    evals = [
        {"step": int(row["Step"]), "loss": row["Validation Loss"], **{k.lower(): v for k, v in row.items()}}
        for row in rows
    ]
    for count in range(1, len(rows) + 1):
        yield Evidence(train[:count], evals[:count], Setup(beta=beta, max_steps=int(rows[-1]["Step"])))


@pytest.mark.parametrize(
    ("seed", "beta", "rows"),
    # alpha and juanako did not publish beta; 0.1 is TRL's default
    [("juanako-7b-v1", 0.1, 7), ("zephyr-7b-alpha", 0.1, 19), ("zephyr-7b-gemma-v0.1", 0.05, 1)],
)
def test_no_alarm_on_the_published_tables(seed: str, beta: float, rows: int) -> None:
    found = [judge(evidence) for evidence in evidence_of_card((CARDS / f"{seed}.md").read_text(), beta)]
    assert len(found) == rows
    for verdicts in found:
        assert not any(verdict.alarm for verdict in verdicts), [verdict.line() for verdict in verdicts]
    assert [verdict.kind for verdict in found[-1]] == ["learning", "both rewards fall"]


# -------------------------------------------------------------------------------------------------------- the measures


def test_jitter_sees_noise_and_not_a_trend() -> None:
    import random

    chance = random.Random(3)
    noise = [chance.gauss(0, 0.1) for _ in range(400)]
    assert jitter(noise) == pytest.approx(0.1, rel=0.15)
    assert jitter([0.01 * i + x for i, x in enumerate(noise)]) == pytest.approx(0.1, rel=0.15)
    assert jitter([float(i) for i in range(50)]) == pytest.approx(0, abs=1e-12)
    assert jitter([1.0, 5.0, 1.0]) == 0


def test_levels_and_rises() -> None:
    assert level([]) is None
    assert level([1.0, 2.0, 3.0, 10.0, 10.0, 16.0]) == 13
    assert smooth([1, 1, 9, 1, 1]) == [1, 1, 1, 1, 1]
    assert share_rising([1, 2, 3, 2]) == pytest.approx(2 / 3)
    assert share_rising([1]) == 0
    assert accuracy_noise(100) == pytest.approx(0.098)


def test_values_that_are_not_numbers_are_left_out() -> None:
    evidence = draw(curves.learns(0.1), DPO)
    broken = [dict(row) for row in evidence.train]
    broken[3]["loss"] = math.nan
    broken[4]["rewards/margins"] = None
    del broken[5]["rewards/accuracies"]
    assert judge(replace(evidence, train=broken))[0].kind == "learning"


def test_every_rule_is_asked() -> None:
    assert len(ALARMS) == len(set(ALARMS)) >= 7
    line = Verdict("degenerate", True, "a 1", "change b", "c").line()
    assert line == "degenerate: a 1; change b"
    assert json.dumps(judge(Evidence([], [], answers=[Written(0, 1, (1, 1), (0, 0))]))[0].line())


# --- how much can be told ---------------------------------------------------------------------------------------------


def known(accuracy: float, pairs: int | None, **more: Any) -> Evidence:
    """A run that learns, its last held-out accuracy as given."""
    evidence = draw(curves.learns(0.1), DPO)
    evals = [dict(row) for row in evidence.evals]
    for row in evals[1:]:
        row["rewards/accuracies"] = accuracy
    return replace(evidence, evals=evals, setup=replace(evidence.setup, pairs=pairs, **more))


@pytest.mark.parametrize(
    ("accuracy", "pairs", "kind"),
    [
        (1.0, 1, "too few to tell"),
        (1.0, 29, "too few to tell"),
        (1.0, 30, "learning"),
        (0.6, 60, "cannot be told"),
        (0.6, 200, "learning"),
        (0.6, None, "learning"),
    ],
)
def test_nothing_is_called_learned_by_pairs_too_few_to_tell(accuracy: float, pairs: int | None, kind: str) -> None:
    first = judge(known(accuracy, pairs))[0]
    assert first.kind == kind
    if pairs is not None:
        assert re.search(rf"{accuracy:.1%} \[\d+%, \d+%\] of {pairs} pair", first.says), first.says


def test_many_passes_over_few_pairs_are_an_alarm() -> None:
    shown = known(1.0, 64, train_pairs=24, pairs_per_step=16, max_steps=180)
    assert [verdict.kind for verdict in judge(shown) if verdict.alarm] == ["too many epochs"]
    assert "120 passes over 24 training pairs" in judge(shown)[0].says
    twice = known(1.0, 64, train_pairs=1440, pairs_per_step=16, max_steps=180)
    assert not [verdict for verdict in judge(twice) if verdict.alarm]


@pytest.mark.parametrize(("low", "alarm"), [(0.95, True), (0.8, False)])
def test_pairs_that_tell_themselves_apart_are_an_alarm(low: float, alarm: bool) -> None:
    feature = {"feature": "begins with 'assistant'", "chosen": 0, "rejected": 227, "first_rows": [1]}
    leak = {"share": 0.97, "low": low, "high": 0.98, "n": 560, "seen": 560, "features": [feature]}
    found = judge(replace(known(0.95, 200), answers=wrote(), separable=leak))
    assert found[0].alarm is alarm
    if alarm:
        assert found[0].kind == "told apart unread"
        assert "97.0% [95%, 98%] of 560 training pairs (begins with 'assistant': only chosen 0, only rejected 227)" in (
            found[0].says
        )
    else:
        assert found[0].good


# --- what is written --------------------------------------------------------------------------------------------------


def wrote(n: int = 48, *, broken: tuple[int, int] = (2, 2), **more: Any) -> list[Written]:
    """Answers at the last evaluation of a run of 200 steps."""
    return [Written(200, n, (6, 6), (0, 0), broken=changed(n, *broken), faults={"empty": broken[1]}, **more)]


def changed(n: int, before: int, after: int) -> Change:
    """So many of n answers had a property before, and so many others have it now."""
    found = Change.of([True] * before + [False] * (n - before), [False] * (n - after) + [True] * after)
    assert found is not None
    return found


def test_a_good_word_needs_answers_that_are_no_worse() -> None:
    evidence = known(0.95, 200)
    unseen, few = judge(evidence)[0], judge(replace(evidence, answers=wrote(19)))[0]
    assert (unseen.kind, unseen.alarm, unseen.good) == ("learning", False, False)
    assert "what it writes cannot be told" in unseen.says
    assert "samples.count" in unseen.change
    assert (few.good, "only 19 written answers" in few.says) == (False, True)
    seen = judge(replace(evidence, answers=wrote(20)))[0]
    assert (seen.kind, seen.alarm, seen.good) == ("learning", False, True)
    assert re.search(r"of 20 written answers broken 10% \[\d+%, \d+%\] \(10% before\)", seen.says)


@pytest.mark.parametrize(
    ("broken", "alarm", "good"),
    [
        ((2, 2), False, True),
        ((4, 0), False, True),
        ((2, 5), False, True),
        ((2, 7), False, False),
        ((1, 15), True, False),
    ],
)
def test_answers_that_fall_apart_are_an_alarm_however_many_pairs_are_won(
    broken: tuple[int, int], alarm: bool, good: bool
) -> None:
    verdict = judge(replace(known(0.98, 216), answers=wrote(broken=broken)))[0]
    assert (verdict.alarm, verdict.good) == (alarm, good), verdict.line()
    if alarm:
        assert verdict.kind == "degenerate"
        assert re.match(r"31% \[\d+%, \d+%\] of 48 written answers are broken, 2% before: 15 empty", verdict.says)
        assert "[sigmoid, sft]" in verdict.change


def test_few_more_broken_answers_among_more_right_ones_are_no_loss() -> None:
    evidence = known(0.98, 216)
    broken = {"broken": (0, 7)}
    assert not judge(replace(evidence, answers=wrote(96, **broken)))[0].good
    assert judge(replace(evidence, answers=wrote(96, **broken, right=changed(96, 53, 86))))[0].good
    assert not judge(replace(evidence, answers=wrote(96, **broken, right=changed(96, 53, 44))))[0].good
    many = judge(replace(evidence, answers=wrote(96, broken=(0, 11), right=changed(96, 53, 80))))[0]
    assert many.alarm, "eleven in a hundred fall apart, whatever else is right"


@pytest.mark.parametrize("what", ["ended", "right"])
def test_answers_that_end_no_more_or_are_right_no_more_are_an_alarm(what: str) -> None:
    fallen = judge(replace(known(0.98, 216), answers=wrote(**{what: changed(48, 40, 20)})))[0]
    assert (fallen.kind, fallen.alarm) == ("degenerate", True)
    assert "of 48 written answers" in fallen.says
    risen = judge(replace(known(0.98, 216), answers=wrote(**{what: changed(48, 20, 40)})))[0]
    assert risen.good


def test_a_small_margin_is_no_alarm_where_nearly_all_pairs_are_won() -> None:
    """A mild run that ranks 96 of 100 pairs and writes well: a higher rate is a remark."""
    evidence = draw(curves.creeps(0.1, 0.02), DPO)
    evals = [dict(row) for row in evidence.evals]
    for row in evals[1:]:
        row["rewards/accuracies"] = 0.96
    found = judge(replace(evidence, evals=evals, setup=replace(evidence.setup, pairs=216), answers=wrote()))
    assert [(verdict.kind, verdict.alarm) for verdict in found] == [
        ("learning", False),
        ("learning rate too low", False),
    ]
    assert found[0].good
    assert "raise train.learning_rate" in found[1].change
    for row in evals[1:]:
        row["rewards/accuracies"] = 0.75
    assert judge(replace(evidence, evals=evals, answers=wrote()))[0].kind == "learning rate too low"
    assert judge(replace(evidence, evals=evals, answers=wrote()))[0].alarm


@pytest.mark.parametrize(("after", "alarm"), [(1.186, True), (1.04, False), (0.9, False)])
def test_text_that_is_forgotten_is_an_alarm(after: float, alarm: bool) -> None:
    evidence = known(0.9, 100)
    evals = [dict(row) for row in evidence.evals]
    for number, row in enumerate(evals):
        row["text_nll"] = 2.0 * (1 + (after - 1) * number / (len(evals) - 1))
    kinds = [verdict.kind for verdict in judge(replace(evidence, evals=evals)) if verdict.alarm]
    assert kinds == (["forgetting"] if alarm else [])


def test_a_run_without_accuracies_says_what_it_knows() -> None:
    evidence = known(0.9, None)
    evals = [{key: value for key, value in row.items() if key != "rewards/accuracies"} for row in evidence.evals]
    says = judge(replace(evidence, evals=evals))[0].says
    assert re.fullmatch(r"held-out margin \S+, loss \S+ from \S+; no written answer was looked at, .*", says), says
