"""Greedy answers: does the artefact run round in circles, or break off, where the trained policy does not?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qdpo.evaluation.statistics import mcnemar_exact
from qdpo.evaluation.written import is_loop

SURE = 0.05
"""Probability below which more loops than the trained policy's are no chance."""


def breaks_off(ids: Sequence[int], beside: Sequence[int], limit: int) -> bool:
    """Whether an answer ended by itself before half of another one's length.

    Args:
        ids: tokens of the answer.
        beside: those of the other answer to the same prompt.
        limit: tokens after which an answer is cut.
    """
    return len(ids) < limit and 2 * len(ids) < len(beside)


@dataclass(frozen=True)
class Answers:
    """What greedy answers to the same prompts look like.

    Attributes:
        prompts: how many.
        tokens: most of an answer.
        loops: how many run in circles: of the trained policy, of the artefact, of the bare base in the artefact's
            precision (None where it was not asked).
        new_loops: prompts to which the artefact's answer does and the policy's does not; and the other way round.
        breaks: prompts to which the artefact's answer breaks off beside the policy's; and the other way round.
    """

    prompts: int
    tokens: int
    loops: tuple[int, int, int | None]
    new_loops: tuple[int, int]
    breaks: tuple[int, int]

    def record(self) -> dict[str, Any]:
        """The figures for verify.json."""
        return {
            "prompts": self.prompts,
            "tokens": self.tokens,
            "loops": dict(zip(("trained", "exported", "rounded base"), self.loops, strict=True)),
            "new_loops": dict(zip(("exported", "trained"), self.new_loops, strict=True)),
            "breaks": dict(zip(("exported", "trained"), self.breaks, strict=True)),
        }

    @property
    def lost(self) -> bool:
        """Whether the artefact loops or breaks off more often than chance would have it."""
        return any(more > less and _by_chance(more, less) < SURE for more, less in (self.new_loops, self.breaks))


def _by_chance(more: int, less: int) -> float:
    """How probable so uneven a split of changed prompts, or a more uneven one, is in this direction."""
    return mcnemar_exact(more, less) / 2


def compare_answers(
    trained: Sequence[Sequence[int]],
    exported: Sequence[Sequence[int]],
    rounded: Sequence[Sequence[int]] | None,
    limit: int,
) -> Answers:
    """Look at the answers of the trained policy, the artefact and the bare base in the artefact's precision.

    Args:
        trained, exported, rounded: token ids of the answers to the same prompts, without the token that ends them.
        limit: most tokens of an answer.
    """
    own, new = ([len(ids) == limit and is_loop(ids) for ids in answers] for answers in (trained, exported))
    pairs = list(zip(trained, exported, strict=True))
    return Answers(
        prompts=len(pairs),
        tokens=limit,
        loops=(
            sum(own),
            sum(new),
            None if rounded is None else sum(len(ids) == limit and is_loop(ids) for ids in rounded),
        ),
        new_loops=(
            sum(b and not a for a, b in zip(own, new, strict=True)),
            sum(a and not b for a, b in zip(own, new, strict=True)),
        ),
        breaks=(
            sum(breaks_off(b, a, limit) for a, b in pairs),
            sum(breaks_off(a, b, limit) for a, b in pairs),
        ),
    )
