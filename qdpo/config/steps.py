"""How many optimizer steps a run has."""

from __future__ import annotations

import math


def steps_for(rows: int, pairs_per_step: int, epochs: float, max_steps: int | None = None) -> int:
    """The optimizer steps of a run.

    An epoch has `rows // pairs_per_step` steps: every step sees the same number of pairs, and the rows that are left
    over in an epoch's order (other ones in each epoch) are not trained on in it. This is `drop_last=True`, and what
    the published runs did: 61,966 rows in steps of 32 are 1,936. Only where there are fewer rows than one step's pairs
    does a step take what there is.

    Args:
        rows: training pairs.
        pairs_per_step: pairs of one optimizer step, over all devices and accumulation.
        epochs: passes over the rows; a fraction of a step counts as one, as in transformers.
        max_steps: the number of steps, whatever the rows and epochs; None counts epochs.

    Returns:
        At least 1.

    Raises:
        ValueError: a count or the epochs are not positive.
    """
    if rows < 1 or pairs_per_step < 1 or epochs <= 0 or (max_steps is not None and max_steps < 1):
        raise ValueError(
            f"rows, pairs, epochs and steps must be positive: {rows}, {pairs_per_step}, {epochs}, {max_steps}"
        )
    return max_steps if max_steps is not None else math.ceil(epochs * steps_per_epoch(rows, pairs_per_step))


def steps_per_epoch(rows: int, pairs_per_step: int) -> int:
    """The optimizer steps of one pass over the rows, see `steps_for`."""
    return max(rows // pairs_per_step, 1)
