"""Running out of memory for real: a run that does not fit must halve its passes, finish, and learn the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.runs import LEAST_MEMORY, Done, configured, run

from qdpo.engine import engine
from qdpo.engine.layout import packed_tokens

Squeeze = Callable[[Done, Done], AbstractContextManager[object]]
"""Makes too little memory for the first of two runs and enough for the second."""


def ladder(
    base: Path,
    data: tuple[Path, Path],
    folder: Path,
    device: torch.device,
    squeeze: Squeeze,
    budgets: tuple[int, int],
    steps: int,
    *overrides: str,
) -> dict[str, Any]:
    """The same run three times: with a large budget, with a small one, and with the large one in too little memory.

    Args:
        base: the model's folder.
        data: training and held-out pairs.
        folder: for the runs.
        device: where they run.
        squeeze: see there.
        budgets: packed tokens of a pass with gradients, the large and the small one.
        steps: optimizer steps.
        overrides: as `--set` takes them.

    Returns:
        What was halved, the losses of the three runs, and what memory they took.
    """

    def made(name: str, budget: int) -> Done:
        # with nothing to give back, smaller passes are the only way out
        settings = (f"packing.tokens_per_micro_batch={budget}", "model.dtype=float32", *LEAST_MEMORY, *overrides)
        return run(configured("garrulus-a40", base, data, steps, *settings), folder / name, device)

    large, small = made("large", budgets[0]), made("small", budgets[1])
    with squeeze(large, small):
        squeezed = made("squeezed", budgets[0])
    return {
        "halved": squeezed.record.get("memory", {}).get("halved", []),
        "losses": {"large": large.losses, "small": small.losses, "squeezed": squeezed.losses},
        "peak_bytes": {"large": large.peak, "small": small.peak, "squeezed": squeezed.peak},
        "difference": max(abs(a / b - 1) for a, b in zip(squeezed.losses, large.losses, strict=True)),
    }


def cap_between(device: torch.device) -> Squeeze:
    """On a GPU: the allocator may take half of what lies between the two runs."""

    @contextlib.contextmanager
    def squeeze(large: Done, small: Done) -> Iterator[None]:
        total = torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction((large.peak + small.peak) / 2 / total, device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)

    return squeeze


def refuse_above(tokens: int) -> Squeeze:
    """For a rehearsal: passes with gradients of more packed tokens run out of memory."""

    @contextlib.contextmanager
    def squeeze(large: Done, small: Done) -> Iterator[None]:
        score = engine.Engine.score

        def limited(self: Any, pairs: Any, indices: Any) -> Any:
            if torch.is_grad_enabled() and sum(map(packed_tokens, pairs)) > tokens:
                raise MemoryError
            return score(self, pairs, indices)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine.Engine, "score", limited)
            yield

    return squeeze
