"""One optimizer step of qdpo's engine, as `qdpo train` does it: packs, reference, loss, metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qdpo.config.loss import LossSettings
from qdpo.data.pairs import TokenPair
from qdpo.engine import attention, varlen
from qdpo.engine.engine import Engine
from qdpo.engine.fuse import fuse
from qdpo.engine.microbatch import cut
from qdpo.engine.recompute import checkpoint_layers
from qdpo.training.losses import pair_losses
from qdpo.training.metrics import Metrics
from qdpo.training.trainer import pair_logps

LOSS = LossSettings(beta=0.1)


@dataclass(frozen=True)
class Settings:
    """How the engine runs.

    Attributes:
        budget: packed tokens per micro-batch.
        checkpointed: layers; None is qdpo's default (all but the last).
        cached: the reference's log-probabilities are known.
        linear, mlp, norm: the fused functions.
        skip_unscored: the last layer's MLP runs on scored rows only.
    """

    budget: int = 2048
    checkpointed: int | None = None
    cached: bool = True
    linear: bool = True
    mlp: bool = True
    norm: bool = True
    skip_unscored: bool = True


@contextlib.contextmanager
def ready(policy: Any, settings: Settings) -> Any:
    """The policy set up for the packed engine, and given back as it was found."""
    base = policy.get_base_model()
    configs = {id(m.config): m.config for m in policy.modules() if hasattr(m, "config")}
    before = {key: getattr(config, "_attn_implementation", None) for key, config in configs.items()}
    layers = [m for m in policy.modules() if hasattr(m, "gradient_checkpointing")]
    flags = [(m, m.gradient_checkpointing, getattr(m, "_gradient_checkpointing_func", None)) for m in layers]
    varlen.register()
    device = next(base.parameters()).device
    # as `qdpo train` decides it; another precision than half goes through SDPA all the same
    attention.install(base, varlen.NAME if varlen.is_faster(base, device, torch.bfloat16) else attention.NAME)
    fusion = fuse(
        policy, linear=settings.linear, mlp=settings.mlp, norm=settings.norm, skip_unscored=settings.skip_unscored
    )
    checkpoint_layers(policy, settings.checkpointed)
    try:
        yield
    finally:
        fusion.undo()
        for key, config in configs.items():
            if before[key] is not None:
                config._attn_implementation = before[key]
        for module, flag, function in flags:
            module.gradient_checkpointing, module._gradient_checkpointing_func = flag, function


def reference(policy: Any, pairs: Sequence[TokenPair], engine: Engine, budget: int) -> Tensor:
    """(n, 2) log-probabilities of the base."""
    with policy.disable_adapter():
        return engine.score_all(pairs, budget).logps.view(2, -1).T.contiguous()


def step(
    policy: Any, pairs: Sequence[TokenPair], engine: Engine, settings: Settings, known: Tensor, metrics: Metrics
) -> float:
    """Forward and backward of one optimizer step.

    Args:
        policy: with its adapter, set up by `ready`.
        pairs: n pairs.
        engine: around the policy's model.
        settings: how to run.
        known: (n, 2) the reference's log-probabilities, used when `settings.cached`.
        metrics: collects what would be logged; read once per step here, the most that a run can ask for.

    Returns:
        The loss.
    """
    policy.train()
    total = torch.zeros((), device=engine.device)
    values = known if settings.cached else reference(policy, pairs, engine, 2 * settings.budget)
    values = values.to(engine.device)
    mean_chosen = sum(len(pair.chosen) for pair in pairs) / len(pairs)
    for group in cut(pairs, settings.budget):
        scores = engine.score([pairs[i] for i in group], group)
        batch = pair_logps(scores, values[group], mean_chosen)
        loss = pair_losses(batch, LOSS).sum() / len(pairs)
        loss.backward()
        total += loss.detach()
        metrics.add_pack(scores, batch, LOSS.beta)
    metrics.read()
    return float(total)
