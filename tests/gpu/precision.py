"""The floating-point types that a run really computes in, seen operation by operation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from gpu.runs import Done, configured, run
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qdpo.engine import logps


class SeenTypes(TorchDispatchMode):
    """Notes the floating-point types of the results of all operations, those of the backward pass included.

    Attributes:
        seen: their names, and how often each was seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what it gives."""
        out = func(*args, **(kwargs or {}))
        if self.counts(func):
            for value in tree_leaves(out):
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    name = str(value.dtype).removeprefix("torch.")
                    self.seen[name] = self.seen.get(name, 0) + 1
        return out

    def counts(self, func: Any) -> bool:
        """Whether an operation is of interest."""
        return True


class SeenProducts(SeenTypes):
    """Notes the types of matrix products only.

    Attention's are not among them, and not those of the packed engine's logits, which are never rounded to half
    precision (`qdpo.engine.logps`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_logits = False

    def __enter__(self) -> Any:
        """Know the logits' products from others."""
        self.plain: Any = logps.logits_of
        logps.logits_of = self._logits  # type: ignore[assignment]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """As it was."""
        logps.logits_of = self.plain
        super().__exit__(*error)

    def _logits(self, *args: Any) -> torch.Tensor:
        self.in_logits = True
        try:
            return self.plain(*args)
        finally:
            self.in_logits = False

    def counts(self, func: Any) -> bool:
        """As `SeenTypes`."""
        return not self.in_logits and func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)


def walk(
    base: Path, data: tuple[Path, Path], folder: Path, device: torch.device, dtype: str, *overrides: str
) -> tuple[Done, dict[str, int]]:
    """Two steps with all types noted, from loading to the written adapter.

    Args:
        base: stored in `dtype`.
        data: training and held-out pairs.
        folder: of the run.
        device: where it runs.
        dtype: compute type.
        overrides: as `--set` takes them.

    Returns:
        The run, and the types that were seen.
    """
    resolved = configured("garrulus-a40", base, data, 2, f"model.dtype={dtype}", *overrides)
    with SeenTypes() as types:
        done = run(resolved, folder, device)
    return done, types.seen
