"""Gradient checkpointing of as many layers as needed, and no more than that.

A checkpointed layer keeps its input only and runs a second time in the backward pass. How many layers do so is a
choice between memory and speed; the gradients are the same for every choice. The last layer is never worth it: its
second run follows the first one at once, so what it would free is needed again immediately.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from qdpo.engine.device import is_played
from qdpo.errors import TrainingError
from qdpo.progress import Progress

_running_again = False


def running_again() -> bool:
    """Whether the code that asks is the second run of a checkpointed layer, whose output nobody will look at."""
    return _running_again


@contextlib.contextmanager
def _second_run() -> Iterator[None]:
    global _running_again
    before, _running_again = _running_again, True
    try:
        yield
    finally:
        _running_again = before


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return contextlib.nullcontext(), _second_run()


def decoder_layers(model: nn.Module) -> list[Any]:
    """The layers of a model that know how to be checkpointed, in their order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextlib.contextmanager
def counted(model: nn.Module, what: str, passes: int) -> Iterator[None]:
    """Tell how far the passes inside the block are, layer by layer; those that a plan plays are nobody's work.

    Args:
        model: that runs.
        what: they are for, in a few words.
        passes: through all layers, second runs included.
    """
    if is_played():
        yield
        return
    layers = decoder_layers(model)
    with Progress(what, passes * len(layers), unit="layers") as progress:
        hooks = [layer.register_forward_hook(lambda *found: progress.advance()) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def checkpoint_layers(model: nn.Module, count: int | None) -> int:
    """Checkpoint the first `count` layers of a model (in training mode) and no others.

    Args:
        model: with its adapter.
        count: layers, 0 for none; None for all but the last.

    Returns:
        How many layers are checkpointed now.

    Raises:
        TrainingError: the model has no layers that can be checkpointed.
    """
    layers = decoder_layers(model)
    if count is None:
        count = max(len(layers) - 1, 0)
    if count and not layers:
        raise TrainingError(
            f"{type(model).__name__} has no layers that transformers can checkpoint",
            "set train.gradient_checkpointing: false and lower packing.tokens_per_micro_batch",
        )
    random = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    run = partial(checkpoint, use_reentrant=False, preserve_rng_state=random, context_fn=_contexts)
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = number < count
        layer._gradient_checkpointing_func = run
    return min(count, len(layers))


def checkpointed(model: nn.Module) -> int:
    """How many layers are checkpointed."""
    return sum(bool(layer.gradient_checkpointing) for layer in decoder_layers(model))
