"""The steps of a run with what they held and how long they took, from its metrics.jsonl and its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpu.bases import Settings
from gpu.runs import Done, as_it_ran

from qdpo.config.schema import RunConfig
from qdpo.config.steps import steps_per_epoch
from qdpo.hardware import find_device
from qdpo.planner.cards import card_of
from qdpo.planner.data import lengths_for
from qdpo.planner.estimate import trained_on
from qdpo.planner.find import Base
from qdpo.planner.lengths import SMALL, PackShape, cut
from qdpo.planner.plays import plays_for
from qdpo.planner.settings import with_changes
from qdpo.planner.timing import fitted
from qdpo.training.order import permutation

WARM_UP = 3
"""Steps that are left out: the first ones load kernels and make the optimizer's state."""


@dataclass(frozen=True)
class TimedStep:
    """One optimizer step.

    Attributes:
        tokens: of its sequences, prompts twice, as `tokens_per_second` counts them.
        packs: what it ran.
        seconds: that it took, by metrics.jsonl.
    """

    tokens: int
    packs: list[PackShape]
    seconds: float


def timed_steps(done: Done, config: RunConfig) -> list[TimedStep]:
    """The steps of a run that logged every step.

    Args:
        done: the run.
        config: with which it ran.
    """
    pairs, size = lengths_for(config).train, config.train.pairs_per_step
    lines = [line for line in done.metrics if "loss" in line]
    per_epoch = steps_per_epoch(len(pairs), size)
    found = []
    for step, line in enumerate(lines):
        epoch, place = divmod(step, per_epoch)
        order = permutation(len(pairs), config.train.seed, epoch)[place * size : (place + 1) * size]
        batch = [pairs[i] for i in order]
        tokens = sum(2 * pair.prompt + pair.chosen + pair.rejected for pair in batch)
        packs = cut(batch, config.packing.tokens_per_micro_batch)
        found.append(TimedStep(tokens, packs, tokens / line["tokens_per_second"]))
    return found


def utilization(done: Done, config: RunConfig, base: Settings, rate: float, skip: int = WARM_UP) -> dict[str, Any]:
    """Which share of a card's matrix products a run has reached.

    Args:
        done: a run that logged every step.
        config: with which it ran.
        base: configuration of its base.
        rate: operations a second of the card's large matrix products.
        skip: steps at the beginning that are left out.

    Returns:
        Seconds and tokens; `mfu` by the operations that the mathematics takes, `hfu` by those that were done, layers
        computed twice included; the planner's seconds for the same steps.
    """
    ran, card, engine = as_it_ran(config, done.record), card_of(find_device()), done.record["engine"]
    known, kernel = Base(config.model.name, base, ""), engine["kernel"]
    every = timed_steps(done, config)
    steps = every[skip:]
    packs = [pack for step in steps for pack in step.packs]
    seconds = sum(step.seconds for step in steps)
    heavy = max(packs, key=lambda pack: pack.tokens)

    def work(again: int, kernel: str | None) -> tuple[float, float]:
        plays, form = plays_for(known, ran, card, kernel), with_changes(ran, "packing", checkpoint_layers=again)
        most, least = (trained_on(plays, form, pack, several=True) for pack in (heavy, PackShape((SMALL,))))
        passes = list(map(fitted(heavy, most, least, card, plays.model.shape.layers), packs))
        return sum(each.flops for each in passes), sum(each.seconds for each in passes)

    # where SDPA reads keys that a query does not see, the mathematics does not ask for it
    (needed, _), (made, planned) = work(0, None), work(engine["checkpointed_layers"], kernel)
    return {
        "steps": len(steps),
        "tokens_of_all_steps": sum(step.tokens for step in every),
        "seconds_per_step": seconds / len(steps),
        "planned_seconds_per_step": planned / len(steps),
        "tokens_per_second": sum(step.tokens for step in steps) / seconds,
        "packed_tokens_per_second": sum(pack.tokens for pack in packs) / seconds,
        "flops_per_step": needed / len(steps),
        "matmul_flops": rate,
        "mfu": needed / seconds / rate,
        "hfu": made / seconds / rate,
    }


def seconds_of(steps: Sequence[TimedStep], skip: int = WARM_UP) -> float:
    """Seconds of all steps but the first ones."""
    return sum(step.seconds for step in steps[skip:])
