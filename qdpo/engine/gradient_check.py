"""The adapter's gradient as training computes it, against the one from separate rows without any of the engine."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from qdpo import console
from qdpo.engine import attention
from qdpo.engine.engine import Engine
from qdpo.engine.layouts import Separate
from qdpo.engine.logps import PackScores
from qdpo.engine.probe import probe_pairs
from qdpo.engine.recompute import counted, decoder_layers
from qdpo.errors import MemoryShortageError, TrainingError
from qdpo.hardware import is_out_of_memory

LIMIT = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.15}
"""Largest relative difference (L2). A wrong gradient is off by its own size."""

PASSES = 4
"""Passes of a check: the engine's with a second run, and those of two separate pairs."""

FACTORS = (1.0, -0.5, -0.8, 0.6)
"""What the log-probabilities of the probe's two pairs are multiplied by, chosen ones first."""


def check_gradients(engine: Engine) -> float | None:
    """Compare gradients on the probe's two pairs.

    One set of gradients is held, the engine's; of the other each parameter's is subtracted when it comes, and dropped.
    Where even that does not fit, the parameters are compared some at a time.

    Args:
        engine: as training will use it, with fused functions installed and checkpointing set up.

    Returns:
        The relative difference (L2), None when dropout makes two passes incomparable.

    Raises:
        TrainingError: it is larger than rounding explains.
        MemoryShortageError: not even one parameter at a time fits.
    """
    model = engine.model
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    was = model.training
    model.train()
    try:
        with counted(model, "checking the engine's gradients", PASSES):
            gap, size = _within_memory(lambda part: _compare(engine, part), trained)
    finally:
        model.train(was)
    difference = gap / size if size else (math.inf if gap else 0.0)
    limit = LIMIT.get(model.get_input_embeddings().weight.dtype, 1e-3)  # type: ignore[operator]
    if not difference <= limit:
        raise TrainingError(
            f"the packed engine's gradient differs from that of separate rows by {difference:.1e} (limit {limit:.0e})",
            "switch packing.fused_mlp, fused_lora and fused_norm off one by one, or set engine: trl; "
            "and report the model's architecture",
        )
    return difference


def _within_memory(
    compare: Callable[[list[nn.Parameter]], tuple[float, float]], trained: list[nn.Parameter]
) -> tuple[float, float]:
    """Norms over all parameters, compared at once, or fewer and fewer at a time when memory runs out."""
    at_once = len(trained)
    while True:
        try:
            norms = [compare(trained[first : first + at_once]) for first in range(0, len(trained), at_once)]
            return math.hypot(*(gap for gap, _ in norms)), math.hypot(*(size for _, size in norms))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if at_once == 1:
                raise MemoryShortageError(
                    "out of memory in the gradient check before training, with two short pairs",
                    "free the card's memory, or try --set lora.r=8, or a smaller base with --model",
                ) from error
        # only now is what the failed pass held free: the exception held it
        for parameter in trained:
            parameter.grad = None
        clear_device_cache(garbage_collection=True)
        at_once = -(-at_once // 2)
        console.note(f"out of memory in the gradient check: comparing {at_once} of {len(trained)} weights at a time")


def _compare(engine: Engine, part: list[nn.Parameter]) -> tuple[float, float]:
    """Norms (L2) over some parameters: of the difference of both gradients, and of the engine's."""
    pairs = probe_pairs(engine.model.config.get_text_config().vocab_size)  # type: ignore[union-attr, operator]
    numbers = list(range(len(pairs)))
    backward = partial(Tensor.backward, inputs=part)
    engine.step(pairs, [numbers], _weighted, backward)
    rest = [_taken(parameter) for parameter in part]
    size = _norm(rest)
    hooks = [
        parameter.register_post_accumulate_grad_hook(partial(_subtract, gradient))
        for parameter, gradient in zip(part, rest, strict=True)
    ]
    try:
        with _without_engine(engine):
            replace(engine, layout=Separate()).step(pairs, [[number] for number in numbers], _weighted, backward)
    finally:
        for hook in hooks:
            hook.remove()
    return _norm(rest), size


def _weighted(group: list[int], scores: PackScores) -> Tensor:
    """The log-probabilities of some of the probe's pairs, multiplied by their factors."""
    half = len(FACTORS) // 2
    factors = [FACTORS[side * half + i] for side in (0, 1) for i in group]
    return (torch.tensor(factors, device=scores.logps.device, dtype=scores.logps.dtype) * scores.logps).sum()


def _taken(parameter: nn.Parameter) -> Tensor:
    """A parameter's gradient in at least fp32, taken away from it; zeros where it has none."""
    gradient, parameter.grad = parameter.grad, None
    if gradient is None:
        gradient = torch.zeros_like(parameter, requires_grad=False)
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32))


def _subtract(rest: Tensor, parameter: Tensor) -> None:
    assert parameter.grad is not None
    rest.sub_(parameter.grad)
    parameter.grad = None


def _norm(gradients: list[Tensor]) -> float:
    return float(torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients]).norm())


@contextlib.contextmanager
def _without_engine(engine: Engine) -> Iterator[None]:
    """The model as it is without the engine: its own attention, nothing fused, nothing computed twice."""
    installed = attention.install(engine.model, engine.own)
    try:
        with engine.fusion.suspended(), _not_checkpointed(engine.model):
            yield
    finally:
        attention.install(engine.model, installed or engine.own)


@contextlib.contextmanager
def _not_checkpointed(model: nn.Module) -> Iterator[None]:
    layers = decoder_layers(model)
    flags = [layer.gradient_checkpointing for layer in layers]
    for layer in layers:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer, flag in zip(layers, flags, strict=True):
            layer.gradient_checkpointing = flag
