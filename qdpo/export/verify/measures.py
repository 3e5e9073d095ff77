"""What an artefact does, in figures that have a zero and an interval.

B is the base that the adapter is merged into, D the adapter's change, Q the artefact's way of rounding; so B + D is the
policy that was trained, Q(B + D) the artefact, and Q(B) the same export of the bare base. m is the margin of a held-out
pair: the log-probability of the chosen answer less that of the rejected one. Training has gained t = m(B + D) - m(B),
the artefact e = m(Q(B + D)) - m(Q(B)). Measured against B instead, a mere shift by the rounding of the base would count
as something that was kept, or lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qdpo.data.pairs import TokenPair
from qdpo.evaluation.statistics import Estimate, bootstrap_ratios
from qdpo.export.verify.parity import Scores, per_token

TOLD = 0.1
FEWEST = 8
"""A share says something when half of its interval's width is `TOLD` at most, and it is of `FEWEST` pairs at least: an
interval over fewer is not worth the name."""


@dataclass(frozen=True)
class Preference:
    """How much of what training has gained the artefact has kept.

    Attributes:
        slope: sum of e t over sum of t^2: the line through zero that tells e from t.
        share: sum of e over sum of t.
        pairs: how many; the intervals are over them.
        needed: pairs that would narrow the slope's interval to `TOLD` on either side; None where too few were scored to
            tell.
    """

    slope: Estimate
    share: Estimate
    pairs: int
    needed: int | None

    @property
    def half_width(self) -> float | None:
        """Of the slope's interval."""
        return _half_width(self.slope)

    @property
    def told(self) -> bool:
        """Whether the interval is narrow enough to say something."""
        return self.pairs >= FEWEST and self.half_width is not None and self.half_width <= TOLD


def preference(gained: Tensor, trained: Tensor) -> Preference | None:
    """How much of the trained gains is kept.

    Args:
        gained: e, float64 [pairs].
        trained: t, float64 [pairs].

    Returns:
        None where training has changed no margin.
    """
    e, t = gained.numpy(), trained.numpy()
    if not t.any() or not t.sum():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample's gains may sum to nothing
        slope, share = bootstrap_ratios(np.stack([e * t, e], 1), np.stack([t * t, t], 1))
    half = _half_width(slope)
    few = len(t) < FEWEST or half is None or not math.isfinite(half)
    needed = None if half is None or few else math.ceil(len(t) * (half / TOLD) ** 2)
    return Preference(slope, share, len(t), needed)


def _half_width(found: Estimate) -> float | None:
    return None if found.low is None or found.high is None else (found.high - found.low) / 2


@dataclass(frozen=True)
class Divergence:
    """How far the artefact is from the policy that it was made of, in nats per token.

    Attributes:
        total: KL(B + D || Q(B + D)), its interval over pairs.
        base: KL(B || Q(B)): what the same rounding costs the base.
        rest: total less base: what it costs the adapter.
        moved: KL(B + D || B): what training has done.
        tokens: how many were compared.
    """

    total: Estimate
    base: Estimate
    rest: Estimate
    moved: Estimate
    tokens: int


def divergence(
    policy: Scores, exported: Scores, base: Scores, rounded: Scores, pairs: Sequence[TokenPair], kept: int
) -> Divergence:
    """The divergence of an artefact, and how much of it is the rounding of its base.

    Args:
        policy, exported, base, rounded: scores of B + D, Q(B + D), B and Q(B).
        pairs: which were scored.
        kept: tokens of each completion whose distributions were kept.
    """
    compared = ((policy, exported), (base, rounded), (policy, base))
    total, own, moved = (per_token(one, other)[0] for one, other in compared)
    lengths = [sum(min(kept, len(side)) for side in (pair.chosen, pair.rejected)) for pair in pairs]
    tokens = np.array(lengths, np.float64)
    sums = [np.array([float(part.sum()) for part in kl.split(lengths)]) for kl in (total, own, moved)]
    columns = np.stack([sums[0], sums[1], sums[0] - sums[1], sums[2]], 1)
    found = bootstrap_ratios(columns, np.stack([tokens] * 4, 1))
    return Divergence(found[0], found[1], found[2], found[3], int(tokens.sum()))


@dataclass(frozen=True)
class Text:
    """What the artefact makes of plain text that is not the run's, beside the policy that it was made of.

    Attributes:
        change: of the mean negative log-likelihood, nats per token, with an interval over texts.
        policy: that of B + D.
        texts, tokens: how many.
    """

    change: Estimate
    policy: float
    texts: int
    tokens: int


def text_change(exported: Scores, policy: Scores, texts: Sequence[Sequence[int]]) -> Text | None:
    """The change on plain text; None where there is none."""
    if not texts:
        return None
    tokens = np.array([len(ids) - 1 for ids in texts], np.float64)
    lost = (policy.texts - exported.texts).numpy()
    (change,) = bootstrap_ratios(lost[:, None], tokens[:, None])
    return Text(change, -float(policy.texts.sum()) / tokens.sum(), len(texts), int(tokens.sum()))


@dataclass(frozen=True)
class Floor:
    """What the type that was trained in does to the trained policy: no artefact can be held to less.

    Attributes:
        dtype: torch's name of it.
        margin: root mean square of how far a margin moves from float32, nats.
        trained: root mean square of the trained gains t, nats.
        kl: KL(float32 || that type), nats per token.
        pairs: how many.
    """

    dtype: str
    margin: float
    trained: float
    kl: float
    pairs: int


def noise_floor(dtype: torch.dtype, own: Scores, trained: Scores, gained: Tensor) -> Floor:
    """Compare the trained policy in its own type with itself in float32.

    Args:
        dtype: the type that was trained in.
        own: the policy's scores in it, of the first pairs.
        trained: those in float32.
        gained: t of all pairs.
    """
    count = len(own.chosen)
    first = trained.first(count, len(own.distributions))
    moved = own.margins - first.margins
    return Floor(
        str(dtype).removeprefix("torch."),
        float(moved.square().mean().sqrt()),
        float(gained.square().mean().sqrt()),
        float(per_token(first, own)[0].mean()),
        count,
    )
