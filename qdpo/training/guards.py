"""Values that are not finite stop a run within the step that makes them, and reach no checkpoint.

Nothing here waits for the device within a micro-batch: what was seen is kept as tensors, and read once a step. Where
float16 is scaled, gradients that overflow are part of the method: such a step is skipped and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qdpo.engine.optimizer import gradient_norm
from qdpo.errors import TrainingError
from qdpo.model.tensors import is_finite
from qdpo.run.checkpoint import WAY_OUT

SKIPS_IN_A_ROW = 20
"""Steps in a row that the fp16 scaler may skip."""

SHOWN = 32
"""Rows that a message names."""


@dataclass
class StepWatch:
    """What was seen in the micro-batches of one step; still on the device.

    Attributes:
        rows: row number of each of the step's pairs in the data.
        groups: positions in `rows` of each micro-batch so far.
        finite: per micro-batch, (2, n) bool: whether each pair's log-probabilities, and its loss, are finite.
        norms: per micro-batch, the norm of the gradients up to there.
    """

    rows: Sequence[int]
    groups: list[list[int]] = field(default_factory=list)
    finite: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)

    def saw(self, group: list[int], chosen: Tensor, rejected: Tensor, losses: Tensor) -> None:
        """Note a micro-batch after its forward pass.

        Args:
            group: positions of its n pairs in `rows`.
            chosen: (n,) log-probabilities.
            rejected: (n,) log-probabilities.
            losses: (n,).
        """
        self.groups.append(group)
        logps = torch.isfinite(chosen.detach()) & torch.isfinite(rejected.detach())
        self.finite.append(torch.stack([logps, torch.isfinite(losses.detach())]))

    def saw_gradients(self, policy: nn.Module) -> None:
        """Note the gradients after a micro-batch's backward pass."""
        self.norms.append(gradient_norm(policy.parameters()))

    def check(self, step: int, policy: nn.Module) -> None:
        """Read what was seen of log-probabilities and losses, in one transfer.

        Raises:
            TrainingError: some are not finite.
        """
        if not self.finite:
            # more processes than pairs: this one had none
            return
        seen = torch.cat(self.finite, 1).cpu()
        if bool(seen.all()):
            return
        order = [self.rows[i] for group in self.groups for i in group]
        what, good = ("log-probabilities", seen[0]) if not seen[0].all() else ("losses", seen[1])
        bad = sorted(row for row, fine in zip(order, good.tolist(), strict=True) if not fine)
        raise not_finite(f"the {what} of {len(bad)} of {len(order)} pairs", step, bad, policy)

    def suspects(self) -> list[int]:
        """The rows of the first micro-batch after which the gradients were not finite; all where none stands out."""
        finite = torch.isfinite(torch.stack(self.norms)).tolist() if self.norms else []
        places = self.groups[finite.index(False)] if False in finite else range(len(self.rows))
        return sorted(self.rows[i] for i in places)


def not_finite(what: str, step: int, rows: Sequence[int], policy: nn.Module) -> TrainingError:
    """The error for values that are not finite, which names a weight where that is where they come from."""
    broken = [name for name, weight in policy.named_parameters() if not is_finite(weight)]
    origin = f"; {len(broken)} weights are not finite (first: {broken[0]})" if broken else ""
    return TrainingError(f"step {step}: {what} are not finite ({name_rows(rows)}){origin}", WAY_OUT)


def name_rows(rows: Sequence[int]) -> str:
    """Row numbers for a message, cut where they are many."""
    rest = len(rows) - SHOWN
    return f"rows {', '.join(map(str, rows[:SHOWN]))}" + (f" and {rest} more" if rest > 0 else "")
