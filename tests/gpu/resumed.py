"""A run that dies in scarce memory and goes on in it: what it takes, where its state lies, and what it has learned."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from gpu.caps import difference
from gpu.runs import LEAST_MEMORY, Done, configured, run
from training.tiny import Callback, StopAt, Stopped, with_callbacks

STATE_BYTES = 8
"""Bytes of both moments of a trained weight."""

Tight = Callable[[Done, int], AbstractContextManager[object]]
"""Leaves the memory that a run has taken, and so many bytes more."""


class OptimizerSeen(Callback):
    """Where the optimizer's state lies after a step.

    Attributes:
        paged: tensors of a first moment in pages, and how many there are, after the last step that was seen.
        resident: bytes of tensors on the card, likewise.
    """

    def __init__(self) -> None:
        self.paged = (0, 0)
        self.resident = 0

    def on_step_end(self, recipe: Any) -> None:
        """Look."""
        states = recipe.optimizer.state.values()
        moments = [values["state1"] for values in states if "state1" in values]
        self.paged = sum(bool(getattr(moment, "is_paged", False)) for moment in moments), len(moments)
        self.resident = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def resumed_in_little_memory(
    base: Path,
    data: tuple[Path, Path],
    folder: Path,
    device: torch.device,
    tight: Tight,
    steps: int,
    *overrides: str,
) -> dict[str, Any]:
    """The same run unbroken, unbroken again in as little memory as that took, and there broken and resumed.

    Half of the optimizer's state is what is left free: were it to come back to the card, there would be no room.

    Args:
        base: the model's folder.
        data: training and held-out pairs.
        folder: for the runs.
        device: where they run.
        tight: see there.
        steps: optimizer steps, an even number; the run dies one step after its checkpoint in the middle.
        overrides: as `--set` takes them.

    Returns:
        Memory and paged tensors of each run, what was halved, and how far the second and the resumed run are from the
        first: the second one by what the kernels' own order of summing makes.
    """
    settings = (
        "train.optim=paged_adamw_32bit",
        f"train.save_every={steps // 2}",
        "samples.count=0",
        *LEAST_MEMORY,
        *overrides,
    )
    resolved = configured("garrulus-a40", base, data, steps, *settings)

    def made(name: str, *, resume: bool = False) -> tuple[Done, dict[str, Any]]:
        seen = OptimizerSeen()
        with with_callbacks(seen):
            done = run(resolved, folder / name, device, resume=resume)
        found = {
            "peak_bytes": done.peak,
            "reserved_bytes": done.reserved,
            "resident_bytes": seen.resident,
            "paged": seen.paged,
            "halved": done.record.get("memory", {}).get("halved", []),
            "losses": done.losses,
        }
        return done, found

    first, unbroken = made("unbroken")
    state = STATE_BYTES * first.record["adapter"]["trainable_parameters"]
    with tight(first, state // 2):
        second, again = made("again")
        # the exception holds what the run held: it must be gone before the next one begins
        with with_callbacks(StopAt(steps // 2 + 1)), contextlib.suppress(Stopped):
            run(resolved, folder / "broken", device)
        third, resumed = made("broken", resume=True)
    return {
        "state_bytes": state,
        "unbroken": unbroken,
        "again": {**again, **difference(first, second)},
        "resumed": {**resumed, **difference(first, third)},
    }


def cap_at(device: torch.device) -> Tight:
    """On a GPU: the allocator may hold what the run has held, and the bytes more."""

    @contextlib.contextmanager
    def tight(done: Done, more: int) -> Any:
        total = torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction((done.reserved + more) / total, device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)

    return tight


def no_cap(done: Done, more: int) -> AbstractContextManager[object]:
    """For a rehearsal."""
    return contextlib.nullcontext()
