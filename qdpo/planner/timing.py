"""How long a run takes on a card: operations, bytes moved, and kernels launched (all estimates, never measured)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qdpo.config.schema import RunConfig
from qdpo.engine.sizes import rows_at_once
from qdpo.planner.cards import LAUNCH_SECONDS, Card
from qdpo.planner.data import Lengths
from qdpo.planner.estimate import sample_rows, trained_on
from qdpo.planner.find import Base
from qdpo.planner.lengths import SMALL, PackShape, PairLengths, cut, heaviest
from qdpo.planner.parts import kept_layers
from qdpo.planner.plays import Plays, plays_for
from qdpo.planner.settings import settings_for
from qdpo.planner.spans import Sum, total

TIMED_STEPS = 20


@dataclass(frozen=True)
class Work:
    """What passes cost.

    Attributes:
        tokens: packed tokens.
        flops: operations.
        seconds: on the card.
    """

    tokens: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.flops + other.flops, self.seconds + other.seconds)

    def times(self, factor: float) -> Work:
        """So often."""
        return Work(self.tokens * factor, self.flops * factor, self.seconds * factor)


@dataclass(frozen=True)
class Duration:
    """Time of a run, without download and loading.

    Attributes:
        steps: optimizer steps; None where unknown: then the figures are of one step.
        step: one optimizer step.
        training: all of them.
        reference: the reference pass.
        evaluation: all evaluations.
        samples: the written answers of all evaluations.
    """

    steps: int | None
    step: Work
    training: Work
    reference: Work
    evaluation: Work
    samples: Work

    @property
    def seconds(self) -> float:
        """All together."""
        return self.training.seconds + self.reference.seconds + self.evaluation.seconds + self.samples.seconds


def duration(config: RunConfig, base: Base, card: Card, lengths: Lengths) -> Duration:
    """Estimate the time of a run."""
    plays = plays_for(base, config, card)
    settings = settings_for(config, base, card, lengths)
    stand_in, layers = plays.model.stand_in, plays.model.shape.layers
    batches = lengths.batches(config)[:TIMED_STEPS]
    kept = kept_layers(plays.model.shape, config) == layers
    train = heaviest(settings.train_packs)[0]
    most, least = (trained_on(plays, config, pack, settings.several) for pack in (train, PackShape((SMALL,))))
    trained = fitted(train, most, least, card, layers)
    packs = [pack for batch in batches for pack in cut(batch, config.packing.tokens_per_micro_batch)]
    step = sum(map(trained, packs), Work()).times(1 / len(batches))
    steps = lengths.steps(config)
    rows = lengths.rows or config.train.pairs_per_step
    visited = min(rows, (steps or 1) * config.train.pairs_per_step)

    small = total(plays.score(PackShape((SMALL,)), adapters=True), stand_in)

    def scoring(pairs: int, like: Sequence[PairLengths], adapters: bool) -> Work:
        if not pairs:
            return Work()
        wide = heaviest(settings.heldout_packs if adapters else settings.reference_packs)[0]
        sample = list(like[:512]) if lengths.real else [like[0]] * max(min(pairs, 512), 1)

        most = total(plays.score(wide, adapters=adapters, kept=adapters and kept), stand_in)
        work = fitted(wide, most, small, card, layers)
        packs = cut(sample, config.packing.tokens_without_grad)
        return sum(map(work, packs), Work()).times(pairs / len(sample))

    heldout = scoring(lengths.heldout_rows, lengths.heldout, True)
    reference = scoring(visited, lengths.train, False)
    reference += scoring(lengths.heldout_rows, lengths.heldout, False)
    evaluations = 2 + (steps or 1) // config.train.eval_every
    # the base answers once
    answers = answers_work(plays, config, card, settings.prompt).times(evaluations + 1)
    return Duration(steps, step, step.times(steps or 1), reference, heldout.times(evaluations), answers)


def fitted(heavy: PackShape, most: Sum, least: Sum, card: Card, layers: int) -> Callable[[PackShape], Work]:
    """The work of a pass over any pack, from that over a heavy one and over one of a few tokens: a fixed part for the
    weights, and one for each token.

    Args:
        heavy: of a run's packs one with the most tokens.
        most: a pass over it.
        least: the same kind of pass over `SMALL`.
        card: what computes.
        layers: of the model.
    """
    sweeps = len(most.peaks)

    def work(pack: PackShape) -> Work:
        share = (pack.tokens - SMALL.packed) / max(heavy.tokens - SMALL.packed, 1)
        flops, moved = (
            sum(one.values()) + share * (sum(other.values()) - sum(one.values()))
            for one, other in ((least.flops, most.flops), (least.moved, most.moved))
        )
        return worked(pack.tokens, flops, moved, card, sweeps * layers)

    return work


def worked(tokens: float, flops: float, moved: float, card: Card, layers: int) -> Work:
    """Operations and bytes in seconds; no pass is faster than its layers' kernels are launched."""
    seconds = flops / card.flops + moved / card.copied
    return Work(tokens, flops, seconds if card.is_cpu else max(seconds, layers * LAUNCH_SECONDS))


def answers_work(plays: Plays, config: RunConfig, card: Card, prompt: int) -> Work:
    """The work of answering a run's prompts once, each of `prompt` tokens, to the last token that is allowed."""
    prompts, new = sample_rows(config), config.samples.max_new_tokens
    if not prompts:
        return Work()
    rows = rows_at_once(prompts, prompt, new, config.packing.tokens_without_grad)
    layers, stand_in = plays.model.shape.layers, plays.model.stand_in
    first, last = (total(plays.answers(rows, length), stand_in) for length in (prompt, prompt + max(new - 2, 0)))
    begun = worked(rows * prompt, first.flops["prompts"], first.moved["prompts"], card, layers)
    tokens = [worked(rows, each.flops["tokens"], each.moved["tokens"], card, layers) for each in (first, last)]
    # the cache grows from token to token
    return (begun + (tokens[0] + tokens[1]).times(max(new - 1, 0) / 2)).times(prompts / rows)
