"""Lengths of pairs, and the packed rows that the engine makes of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from qdpo.data.pairs import TokenPair
from qdpo.data.tokenise import common_prefix
from qdpo.engine.sizes import first_fit


class PairLengths(NamedTuple):
    """Tokens of one pair.

    Attributes:
        prompt: of the prompt.
        chosen: of the chosen completion.
        rejected: of the rejected completion.
        shared: that both completions begin with.
    """

    prompt: int
    chosen: int
    rejected: int
    shared: int = 0

    @property
    def prefix(self) -> int:
        """Tokens that are computed once for both sequences."""
        return self.prompt + self.shared

    @property
    def rests(self) -> tuple[int, int]:
        """Tokens of the two completions behind the prefix; the last of each predicts nothing."""
        return max(self.chosen - self.shared - 1, 0), max(self.rejected - self.shared - 1, 0)

    @property
    def packed(self) -> int:
        """Tokens in a packed row."""
        return self.prefix + sum(self.rests)

    @property
    def scored(self) -> int:
        """Places whose log-probability is computed."""
        return self.chosen + self.rejected - self.shared

    @property
    def scored_rows(self) -> int:
        """Tokens of the packed row whose state predicts something; the prefix's last predicts for both completions."""
        return self.shared + (max(self.chosen, self.rejected) > self.shared) + sum(self.rests)


SMALL = PairLengths(4, 3, 3)
"""A pair of a pass in which little but the weights counts."""


@dataclass(frozen=True)
class PackShape:
    """A packed row by its lengths.

    Attributes:
        pairs: what it holds.
    """

    pairs: tuple[PairLengths, ...]

    @cached_property
    def tokens(self) -> int:
        """Tokens of the row."""
        return sum(pair.packed for pair in self.pairs)

    @cached_property
    def scored(self) -> int:
        """Scored places."""
        return sum(pair.scored for pair in self.pairs)

    @cached_property
    def scored_rows(self) -> int:
        """Tokens that predict something, which the last layer's MLP is run on."""
        return sum(pair.scored_rows for pair in self.pairs)

    @cached_property
    def segments(self) -> list[tuple[int, int]]:
        """(tokens, tokens of the prefix that they see) of every run of tokens, in the order of the row."""
        found = []
        for pair in self.pairs:
            found.append((pair.prefix, 0))
            found += [(rest, pair.prefix) for rest in pair.rests if rest]
        return found


def lengths_of(pairs: Sequence[TokenPair]) -> list[PairLengths]:
    """The lengths of token pairs."""
    return [
        PairLengths(len(p.prompt), len(p.chosen), len(p.rejected), common_prefix(p.chosen, p.rejected)) for p in pairs
    ]


def cut(pairs: Sequence[PairLengths], budget: int) -> list[PackShape]:
    """Packed rows of up to `budget` tokens, cut as `qdpo.engine.layouts` does; a longer pair is a row of its own."""
    groups = first_fit([pair.packed for pair in pairs], budget)
    return [PackShape(tuple(pairs[i] for i in group)) for group in groups]


SAMPLED_STEPS = 400
"""Steps whose packs are made up to find the largest: a run's order is not known before it starts, its like is."""


def steps_of(pairs: Sequence[PairLengths], per_step: int, steps: int, seed: int) -> list[list[PairLengths]]:
    """The pairs of a run's steps in some random order, up to `SAMPLED_STEPS` of them; the longest pairs are in one."""
    rng = random.Random(seed)
    order: list[PairLengths] = []
    wanted = min(steps, SAMPLED_STEPS)
    while len(order) < wanted * per_step:
        order += rng.sample(pairs, len(pairs))
    batches = [order[i * per_step : (i + 1) * per_step] for i in range(wanted)]
    if steps > SAMPLED_STEPS:
        # what the sample may have missed
        batches.append([*sorted(pairs, key=lambda pair: -pair.packed)[:1], *batches[0][1:]])
    return batches


def heaviest(packs: Sequence[PackShape]) -> list[PackShape]:
    """The packs of which one needs the most memory: by tokens, scored places, and copies of keys for completions."""

    def copies(pack: PackShape) -> int:
        return sum(own + prefix for own, prefix in pack.segments if prefix)

    def padded(pack: PackShape) -> int:
        own, prefix = (max((s[i] for s in pack.segments if s[1]), default=0) for i in (0, 1))
        return len(pack.segments) * (own + prefix)

    keys = (lambda pack: pack.tokens, lambda pack: pack.scored, copies, padded)
    return list(dict.fromkeys(max(packs, key=key) for key in keys)) if packs else []
