"""How long a run takes on a card: operations, bytes moved, and kernels launched (all estimates, never measured)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qdpo.config.schema import RunConfig
from qdpo.planner.cards import LAUNCH_SECONDS, Card
from qdpo.planner.data import Lengths
from qdpo.planner.lengths import PackShape, cut
from qdpo.planner.parts import adapter_weights, checkpointed_layers, kept_layers
from qdpo.planner.sampling import answers_seconds
from qdpo.planner.shapes import Shape

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


def duration(shape: Shape, config: RunConfig, card: Card, b: int, lengths: Lengths) -> Duration:
    """Estimate the time of a run; `b` are the bytes of an activation."""
    batches = lengths.batches(config)[:TIMED_STEPS]
    budget, wide = config.packing.tokens_per_micro_batch, config.packing.tokens_without_grad
    again = checkpointed_layers(shape, config) / shape.layers
    passes = [pass_work(shape, config, card, b, pack, again) for batch in batches for pack in cut(batch, budget)]
    step = sum(passes, Work()).times(1 / len(batches))
    steps = lengths.steps(config)
    rows = lengths.rows or config.train.pairs_per_step
    visited = min(rows, (steps or 1) * config.train.pairs_per_step)

    def scoring(pairs: int, like: Sequence) -> Work:
        if not pairs:
            return Work()
        sample = list(like[:512]) if lengths.real else [like[0]] * max(min(pairs, 512), 1)
        packs = cut(sample, wide)
        return sum((pass_work(shape, config, card, b, p, None) for p in packs), Work()).times(pairs / len(sample))

    heldout = scoring(lengths.heldout_rows, lengths.heldout)
    evaluations = 2 + (steps or 1) // config.train.eval_every
    answered = answers_seconds(shape, config, card, b, adapter=True) * evaluations
    # the base answers once
    answered += answers_seconds(shape, config, card, b, adapter=False)
    return Duration(
        steps,
        step,
        step.times(steps or 1),
        scoring(visited, lengths.train) + heldout,
        heldout.times(evaluations),
        Work(seconds=answered),
    )


def pass_work(shape: Shape, config: RunConfig, card: Card, b: int, pack: PackShape, again: float | None) -> Work:
    """One pass over a pack.

    Args:
        b: bytes of an activation.
        again: share of the layers that are computed a second time; None is a pass without gradients.
    """
    tokens = pack.tokens
    scores = sum(own * (prefix + own / 2) for own, prefix in pack.segments)
    forward = 2.0 * shape.linear * tokens + 4.0 * shape.q * scores * shape.layers
    # backward: the gradient of the activations only, and of the adapter
    runs = 1.0 if again is None else 2.0 + again
    adapter = adapter_weights(shape, config)
    flops = runs * (forward + 2.0 * adapter * tokens) + (0 if again is None else 4.0 * adapter * tokens)
    flops += (2.0 if again is None else 4.0) * shape.embedding * pack.scored
    quantized = config.model.quantization == "nf4"
    # a 4-bit weight is read, written in the compute type, and read again; one that is kept is read
    fresh = 1 - kept_layers(shape, config) / shape.layers if quantized else 0.0
    moved = runs * shape.linear * (fresh * (0.5 + b) + b)
    moved += (runs if again is None else runs + 1) * tokens * shape.layers * _elementwise(shape, b)
    seconds = flops / card.flops + moved / card.copied
    if not card.is_cpu:
        seconds = max(seconds, runs * shape.layers * LAUNCH_SECONDS)
    return Work(tokens, flops, seconds)


def _elementwise(shape: Shape, b: int) -> float:
    """Bytes that norms, rotation, copies, activation, residuals and adapters move per token and layer."""
    h, q, kv, i = shape.hidden, shape.q, shape.kv, shape.intermediate
    outputs = 2 * q + 2 * kv + 2 * i + h
    return 2 * h * (2 * b + 16) + 8 * (q + kv) * b + 6 * q * b + 4 * i * b + 6 * h * b + 3 * outputs * b
