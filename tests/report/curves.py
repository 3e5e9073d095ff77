"""Curves of runs of every kind, with noise: what metrics.jsonl would hold, made of invented numbers.

A curve is drawn from what happens to a pair: the policy moves `chosen(t)` and `rejected(t)` nats away from its
reference (t from 0 to 1 over the run), pairs differ from each other, and a logged line is the mean over the pairs that
it saw. Losses and accuracies follow from the pairs, so that the lines agree with each other as a real run's do.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from qdpo.evaluation.written import Written
from qdpo.verdicts.evidence import Evidence, Lengths, Setup

Course = Callable[[float], float]


@dataclass(frozen=True)
class Curve:
    """How a run goes.

    Attributes:
        chosen, rejected: mean log-ratio to the reference of the training pairs at a time from 0 to 1, in nats.
        heldout_margin: mean margin of the held-out pairs in nats; None takes the training pairs'.
        heldout_chosen: mean log-ratio of the held-out chosen completions; None takes the training pairs'.
        spread: standard deviation of pairs' margins in nats at a time.
        heldout_spread: the same of the held-out pairs; None takes `spread`.
        wobble: noise of a logged training line besides, as a share of its spread.
        start: log-probability of the chosen completions before training.
    """

    chosen: Course
    rejected: Course
    heldout_margin: Course | None = None
    heldout_chosen: Course | None = None
    spread: Course = lambda t: 8.0 * t**0.5
    heldout_spread: Course | None = None
    wobble: float = 0.0
    start: float = -250.0


@dataclass(frozen=True)
class Shape:
    """The outer measures of a run, in which every kind is drawn."""

    steps: int = 200
    eval_every: int = 20
    log_every: int = 5
    batch: int = 16
    pairs: int = 300
    seed: int = 0
    setup: Setup = field(default_factory=Setup)


def rise(to: float, speed: float = 3.0) -> Course:
    """From 0 towards a level, fast at first."""
    return lambda t: to * (1 - math.exp(-speed * t)) / (1 - math.exp(-speed))


def draw(curve: Curve, shape: Shape, **besides: Any) -> Evidence:
    """The evidence of a run that goes like that."""
    chance = random.Random(shape.seed)
    setup = replace(shape.setup, max_steps=shape.steps, pairs=shape.pairs)
    drawn = [chance.gauss(0, 1) for _ in range(shape.pairs)]
    heldout_pairs = [pair - sum(drawn) / len(drawn) for pair in drawn]  # of the margin that was asked for
    train, evals = [], []
    for step in range(shape.steps + 1):
        t = step / shape.steps
        if step % shape.log_every == 0 and step > 0:
            n = shape.batch * shape.log_every
            seen = [chance.gauss(0, 1) for _ in range(n)]
            jump = curve.wobble * curve.spread(t) * chance.gauss(0, 1)
            margin = curve.chosen(t) - curve.rejected(t) + jump
            line = _line(step, curve.chosen(t), margin, curve.spread(t), seen, curve.start, setup)
            train.append({**line, "grad_norm": 1.0, "learning_rate": 1e-5})
        if step % shape.eval_every == 0:
            margin = (curve.heldout_margin or (lambda t: curve.chosen(t) - curve.rejected(t)))(t)
            # the same pairs at every evaluation, each with a little noise of its own
            pairs = [pair + 0.15 * chance.gauss(0, 1) for pair in heldout_pairs]
            spread = (curve.heldout_spread or curve.spread)(t)
            evals.append(
                _line(step, (curve.heldout_chosen or curve.chosen)(t), margin, spread, pairs, curve.start, setup)
            )
    return Evidence(train, evals, setup, **besides)


def _line(
    step: int, chosen: float, margin: float, spread: float, pairs: list[float], start: float, setup: Setup
) -> dict[str, Any]:
    margins = [margin + spread * pair for pair in pairs]
    n = len(margins)
    mean = sum(margins) / n
    return {
        "step": step,
        "loss": sum(_loss(setup, d) for d in margins) / n,
        "rewards/chosen": setup.beta * chosen,
        "rewards/rejected": setup.beta * (chosen - mean),
        "rewards/margins": setup.beta * mean,
        "rewards/accuracies": sum(d > 0 for d in margins) / n,
        "logps/chosen": start + chosen,
        "logps/rejected": start + chosen - mean,
    }


def _loss(setup: Setup, d: float) -> float:
    reward = setup.beta * d
    logistic = math.log1p(math.exp(-reward)) if reward > -30 else -reward
    if "discopop" in setup.loss_type:
        share = 1 / (1 + math.exp(-max(-700.0, min(700.0, reward / setup.tau))))
        return (1 - share) * logistic + share * math.exp(-reward)
    return logistic


# --------------------------------------------------------------------------------------- the kinds, in nats at beta 0.1


def learns(beta: float, rewarded: float = 1.2, fall: float = 0.0) -> Curve:
    """Margins grow to `rewarded`; `fall`: how far below 0 the chosen reward ends."""
    chosen = rise((0.3 * rewarded if not fall else -fall) / beta)
    return Curve(
        chosen, lambda t: chosen(t) - rise(rewarded / beta)(t), spread=lambda t: 1.3 * rewarded / beta * t**0.5
    )


def idles(beta: float, moved: float) -> Curve:
    """The policy moves, both sides alike, and no pair is told from another."""
    side = rise(-moved)
    return Curve(side, side, spread=lambda t: max(1e-6, 0.2 * moved * t))


def stands(beta: float) -> Curve:
    """Nothing moves at all."""
    return Curve(lambda t: 0.0, lambda t: 0.0, spread=lambda t: 1e-9)


def swapped(beta: float) -> Curve:
    """Learned in training, the opposite held-out: two columns were exchanged in one of the sets."""
    return replace(learns(beta), heldout_margin=rise(-1.0 / beta))


def creeps(beta: float, rewarded: float) -> Curve:
    """The right way, and almost nowhere."""
    grown = rise(rewarded / beta, 0.5)
    return Curve(lambda t: 0.3 * grown(t), lambda t: -0.7 * grown(t), spread=lambda t: 1.5 * grown(t))


def diverges(beta: float, far: float) -> Curve:
    """Thrown about: margins of either sign, loss above its start."""
    return Curve(
        lambda t: far * t**0.3 / beta,
        lambda t: far * t**0.3 / beta + 0.2 / beta,
        spread=lambda t: far / beta * t**0.3,
        wobble=0.4,
    )


def breaks(beta: float, nats_per_token: float, tokens: float) -> Curve:
    """Both sides collapse together, and nothing is learned."""
    side = rise(-nats_per_token * tokens, 20)
    return Curve(side, side, spread=lambda t: 2.0 * t, start=-tokens)


def saturates(beta: float) -> Curve:
    """All training pairs are won with a wide margin, the held-out ones as well."""
    return replace(learns(beta, 7.0), spread=lambda t: 2.2 / beta * t**0.5)


def over_fits(beta: float, best: float, worse: float) -> Curve:
    """Training margins grow; held-out pairs get better until `best` of the run, and then lose each other."""

    def spread(t: float) -> float:
        grown = 1.2 / beta * min(t, best) ** 0.5
        return grown + max(0.0, t - best) / (1 - best) * worse / beta

    return Curve(
        rise(-1.0 / beta),
        lambda t: -1.0 / beta * t - rise(6.0 / beta, 1)(t),
        heldout_margin=lambda t: rise(1.0 / beta)(min(t, best)),
        spread=lambda t: 2.0 / beta * t**0.5,
        heldout_spread=spread,
    )


def forgets(beta: float) -> Curve:
    """Training margins grow, the held-out margin shrinks after its best."""
    return Curve(
        rise(0.3 / beta),
        lambda t: rise(0.3 / beta)(t) - rise(5.0 / beta, 1)(t),
        heldout_margin=lambda t: rise(1.2 / beta)(min(t, 0.4)) * (1 - 0.9 * max(0.0, t - 0.4) / 0.6),
        spread=lambda t: 1.5 / beta * t**0.5,
    )


def collapses(beta: float, nats_per_token: float, tokens: float) -> Curve:
    """The margin grows while the chosen completions themselves become impossible."""
    chosen = rise(-nats_per_token * tokens, 1)
    return Curve(
        chosen,
        lambda t: chosen(t) - rise(2.0 / beta)(t),
        spread=lambda t: 1.5 / beta * t**0.5,
        start=-1.0 * tokens,
    )


def dips(tau: float, beta: float, recovers: bool) -> Curve:
    """DiscoPOP: the margin goes down to the local minimum first, and out of it again or not."""
    depth = 2.4 * tau / beta

    def margin(t: float) -> float:
        down = -depth * min(1.0, t / 0.15)
        return down if not recovers or t < 0.3 else down + (2.0 / beta + depth) * (t - 0.3) / 0.7

    return Curve(lambda t: 0.2 * margin(t), lambda t: -0.8 * margin(t), spread=lambda t: 0.6 * depth * t**0.5)


def chatty(steps: int, every: int, words: float, base: float = 80.0, repeated: float = 0.05) -> list[Written]:
    """Answers whose words grow to `words` and whose repeated 4-grams grow to `repeated`."""
    return [
        Written(
            step,
            48,
            words=(base, base + (words - base) * step / steps),
            repeated=(0.04, 0.04 + (repeated - 0.04) * step / steps),
        )
        for step in range(0, steps + 1, every)
    ]


def longer_wins(longer: float, shorter: float, n: int = 200) -> Lengths:
    """Held-out accuracy by which side is longer."""
    return Lengths((n, round(n * longer)), (n, round(n * shorter)))
