"""Faults put in on purpose: a rehearsal that would not see them proves nothing.

Each is one that a run on a card has had, or would have had: no autocast around the training passes, a kernel that the
installed torch calls otherwise, a model that is dequantized for every token it writes, copies that the host waits for.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any


def no_autocast() -> None:
    """The recipe's passes run in the types of the weights, as under a context manager that does nothing."""
    from qdpo.training.recipe import Recipe

    plain = Recipe.__init__

    def without(self: Any, run: Any, policy: Any, engine: Any, **settings: Any) -> None:
        plain(self, run, policy, dataclasses.replace(engine, autocast=contextlib.nullcontext), **settings)

    Recipe.__init__ = without  # type: ignore[method-assign]


def unknown_argument() -> None:
    """torch's variable-length kernel does not know an argument, and nobody tried it before."""
    from qdpo.engine import attach, attention, probe, varlen
    from qdpo.engine.layouts import Packed

    def kernel(*arguments: Any, **options: Any) -> Any:
        raise TypeError("varlen_attn() got an unexpected keyword argument 'enable_gqa'")

    def decide(model: Any, *args: Any) -> Any:
        attention.install(model, varlen.NAME)
        return probe.Decision(Packed(), "not tried", kernel="varlen")

    varlen.register()
    varlen.kernel, attach.decide = kernel, decide


def dequantized_answers() -> None:
    """A decoded token takes the way of a training pass."""
    from qdpo.engine import frozen

    frozen.is_decoding = lambda: False


def waiting() -> None:
    """Packs are copied tensor by tensor from ordinary memory, and tokens are counted by bincount."""
    import torch

    from qdpo.engine import attention, layout, logps

    def all_to_device(tensors: Any, device: Any) -> list[Any]:
        return [tensor.to(device, non_blocking=True) for tensor in tensors]

    layout.all_to_device = attention.all_to_device = all_to_device
    plain = logps.sum_per_sequence

    def counted(scores: Any, scored: Any, sequence: Any, count: int) -> Any:
        tokens = torch.bincount(sequence, minlength=count)
        return dataclasses.replace(plain(scores, scored, sequence, count), tokens=tokens.to(scores.logps.dtype))

    logps.sum_per_sequence = counted


FAULTS: dict[str, Callable[[], None]] = {
    fault.__name__: fault for fault in (no_autocast, unknown_argument, dequantized_answers, waiting)
}
