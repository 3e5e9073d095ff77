"""One optimizer step of qdpo's engine, as `qdpo train` does it: packs, reference, loss, metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qdpo.config.loss import LossSettings
from qdpo.config.schema import PackingSection
from qdpo.data.pairs import TokenPair
from qdpo.engine.attach import attach, detach
from qdpo.engine.engine import Engine
from qdpo.engine.logps import PackScores
from qdpo.engine.recompute import decoder_layers
from qdpo.training.losses import pair_losses
from qdpo.training.metrics import Metrics
from qdpo.training.recipe import pair_logps

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
def ready(
    policy: Any, settings: Settings, device: torch.device, autocast: Callable[[], AbstractContextManager[object]]
) -> Iterator[Engine]:
    """The policy set up for the engine as `qdpo train` does it, and given back as it was found."""
    layers = decoder_layers(policy)
    flags = [(m, m.gradient_checkpointing, getattr(m, "_gradient_checkpointing_func", None)) for m in layers]
    packing = PackingSection(
        fused_lora=settings.linear,
        fused_mlp=settings.mlp,
        fused_norm=settings.norm,
        skip_unscored=settings.skip_unscored,
        checkpoint_layers="auto" if settings.checkpointed is None else settings.checkpointed,
    )
    engine, _ = attach(policy, device, autocast, packing, checkpointing=True)
    try:
        yield engine
    finally:
        detach(engine)
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
        engine: from `ready`.
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

    def loss_of(group: list[int], scores: PackScores) -> Tensor:
        batch = pair_logps(scores, values[group], mean_chosen)
        loss = pair_losses(batch, LOSS).sum() / len(pairs)
        total.add_(loss.detach())
        metrics.add_pack(scores, batch, LOSS.beta)
        return loss

    engine.step(pairs, engine.cut(pairs, settings.budget), loss_of)
    metrics.read()
    return float(total)
