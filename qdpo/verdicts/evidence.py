"""What a verdict is made from: the lines of metrics.jsonl, the configuration, and what was measured besides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from qdpo.evaluation.written import Written
from qdpo.verdicts.trends import accuracy_noise, level, values

RIPE = 0.4
"""The share of the steps after warmup before which nobody says that nothing happens."""


@dataclass(frozen=True)
class Setup:
    """What the rules need to know of a run's configuration.

    Attributes:
        loss_type: names of the losses.
        beta: strength of the pull towards the reference, 1/nats.
        tau: DiscoPOP's temperature.
        learning_rate: peak learning rate; None when unknown.
        warmup: steps of warmup.
        max_steps: steps of the whole run; 0 when unknown, then what is there is taken for all of it.
        pairs: held-out pairs.
        train_pairs: training pairs.
        pairs_per_step: pairs of a step.
        chosen_tokens: tokens of a typical chosen completion.
    """

    loss_type: Sequence[str] = ("sigmoid",)
    beta: float = 0.1
    tau: float = 0.05
    learning_rate: float | None = None
    warmup: int = 0
    max_steps: int = 0
    pairs: int | None = None
    train_pairs: int | None = None
    pairs_per_step: int = 0
    chosen_tokens: float | None = None


@dataclass(frozen=True)
class Lengths:
    """Held-out reward accuracy by which side is longer.

    Attributes:
        chosen_longer: pairs whose chosen side has more tokens, and how many of them are won.
        chosen_shorter: the same of pairs whose chosen side has fewer.
    """

    chosen_longer: tuple[int, int]
    chosen_shorter: tuple[int, int]


@dataclass(frozen=True)
class Evidence:
    """What a verdict is made from.

    Attributes:
        train: logged training steps in order: step, loss, rewards/chosen, rewards/margins, ...
        evals: evaluations in order, the same keys without `eval_`.
        setup: the configuration.
        answers: the samples at each evaluation, if there are any.
        lengths: held-out accuracy by length, if it was measured.
        separable: how well the training pairs' answers alone tell chosen from rejected (`qdpo.data.quality.separable`).
    """

    train: Sequence[Mapping[str, Any]]
    evals: Sequence[Mapping[str, Any]]
    setup: Setup = field(default_factory=Setup)
    answers: Sequence[Written] = ()
    lengths: Lengths | None = None
    separable: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def scored(self) -> list[Mapping[str, Any]]:
        """Evaluations after the start."""
        return [row for row in self.evals if row["step"] > 0]

    @cached_property
    def ripe_train(self) -> list[Mapping[str, Any]]:
        """Logged steps after the warmup."""
        return [row for row in self.train if row["step"] > self.setup.warmup]

    @property
    def step(self) -> int:
        """The newest step."""
        return max([int(row["step"]) for row in (*self.train[-1:], *self.evals[-1:])], default=0)

    @property
    def progress(self) -> float:
        """The share of the run that is done; 1 when its length is not known."""
        return min(1.0, self.step / self.setup.max_steps) if self.setup.max_steps else 1.0

    @property
    def ripe(self) -> bool:
        """Whether enough of the run at its full learning rate is behind it to say that nothing happens."""
        if not self.setup.max_steps:
            return True
        warmup = min(self.setup.warmup, self.setup.max_steps)
        return self.step >= warmup + RIPE * (self.setup.max_steps - warmup)

    @cached_property
    def start_loss(self) -> float | None:
        """The held-out loss before training; for DPO's own loss it is ln 2, measured or not."""
        if self.evals and self.evals[0]["step"] == 0 and (first := values(self.evals[:1], "loss")):
            return first[0]
        if list(self.setup.loss_type) == ["sigmoid"]:
            return math.log(2)
        first = values(self.train[:1], "loss")
        return first[0] if first and self.train[0]["step"] <= max(1, self.setup.warmup // 10) else None

    def heldout(self, key: str) -> float | None:
        """Where a curve of the held-out pairs stands."""
        return level(values(self.scored, key))

    def trained(self, key: str) -> float | None:
        """Where a curve of the training steps after the warmup stands."""
        return level(values(self.ripe_train, key))

    @property
    def epochs(self) -> float:
        """Passes over the training pairs that the whole run takes; 0 when they are not known."""
        steps = self.setup.max_steps or self.step
        return steps * self.setup.pairs_per_step / self.setup.train_pairs if self.setup.train_pairs else 0.0

    @property
    def newest_accuracy(self) -> float | None:
        """Held-out reward accuracy of the newest evaluation."""
        found = values(self.scored, "rewards/accuracies")
        return found[-1] if found else None

    @cached_property
    def accuracy(self) -> float | None:
        """Held-out reward accuracy now."""
        return self.heldout("rewards/accuracies")

    @cached_property
    def margin(self) -> float | None:
        """Held-out reward margin now."""
        return self.heldout("rewards/margins")

    @cached_property
    def loss(self) -> float | None:
        """Held-out loss now."""
        return self.heldout("loss")

    @cached_property
    def moved(self) -> float:
        """Nats per completion that the policy has moved from its reference: the larger of both sides."""
        sides = [level(values(self.scored or self.train, f"rewards/{side}")) for side in ("chosen", "rejected")]
        return max((abs(side) for side in sides if side is not None), default=0.0) / self.setup.beta

    @property
    def written(self) -> Written | None:
        """What was written at the newest evaluation after the start."""
        return self.answers[-1] if self.answers and self.answers[-1].step > 0 else None

    @property
    def above_chance(self) -> bool:
        """Whether the held-out accuracy is better than guessing."""
        return self.accuracy is not None and self.accuracy > 0.5 + accuracy_noise(self.setup.pairs)

    @property
    def discopop(self) -> bool:
        """Whether the loss is DiscoPOP's, whose value says little about success near its start."""
        return "discopop" in self.setup.loss_type
