"""The adapter's gradient as training computes it, against the one from separate rows without any of the engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from qdpo.errors import TrainingError
from qdpo.packing import attention
from qdpo.packing.engine import Engine
from qdpo.packing.fuse import Fusion
from qdpo.packing.padded import score_padded
from qdpo.packing.probe import probe_pairs
from qdpo.packing.recompute import decoder_layers

LIMIT = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.15}
"""Largest relative difference (L2). A wrong gradient is off by its own size."""


def check_gradients(engine: Engine, fusion: Fusion, own_attention: str) -> float | None:
    """Compare gradients on the probe's two pairs.

    Args:
        engine: as training will use it, with fused functions installed and checkpointing set up.
        fusion: what was fused.
        own_attention: the model's own attention implementation.

    Returns:
        The relative difference (L2), None when dropout makes two passes incomparable.

    Raises:
        TrainingError: it is larger than rounding explains.
    """
    model = engine.model
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    pairs = probe_pairs(model.config.get_text_config().vocab_size)  # type: ignore[union-attr, operator]

    def gradient(logps: Tensor) -> Tensor:
        factors = torch.tensor([1.0, -0.5, -0.8, 0.6], device=logps.device, dtype=logps.dtype)
        parts = torch.autograd.grad((factors * logps).sum(), trained, allow_unused=True)
        zeros = (torch.zeros_like(p) if g is None else g for g, p in zip(parts, trained, strict=True))
        return torch.cat([g.flatten().float() for g in zeros])

    was = model.training
    model.train()
    try:
        mine = gradient(engine.score(pairs, range(len(pairs))).logps)
        installed = attention.install(model, own_attention)
        with fusion.suspended(), _not_checkpointed(model), engine.autocast():
            logps = score_padded(model, pairs, engine.device).logps
        theirs = gradient(logps)
        attention.install(model, installed or own_attention)
    finally:
        model.train(was)
    size = theirs.norm()
    difference = float((mine - theirs).norm() / size) if size > 0 else float(mine.norm())
    limit = LIMIT.get(model.get_input_embeddings().weight.dtype, 1e-3)  # type: ignore[operator]
    if not difference <= limit:
        raise TrainingError(
            f"the packed engine's gradient differs from that of separate rows by {difference:.1e} (limit {limit:.0e})",
            "switch packing.fused_mlp, fused_lora and fused_norm off one by one, or set engine: trl; "
            "and report the model's architecture",
        )
    return difference


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
