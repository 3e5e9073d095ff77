"""Setting a model up for the engine: the one place where layout, attention, fused functions and recomputation meet."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from qdpo.config.schema import PackingSection
from qdpo.engine import attention
from qdpo.engine.engine import Engine
from qdpo.engine.fuse import Fusion, fuse_as_configured
from qdpo.engine.probe import Decision, decide
from qdpo.engine.recompute import checkpoint_layers
from qdpo.errors import UnavailableError


def attach(
    policy: nn.Module,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    packing: PackingSection | None = None,
    *,
    checkpointing: bool | None = None,
    kernel: str | None = None,
) -> tuple[Engine, Decision]:
    """Probe a model, install the layout and attention that suit it, and what else the settings ask for.

    Args:
        policy: a PeftModel or a *ForCausalLM, with its own attention.
        device: where it is.
        autocast: the context of a forward pass.
        packing: what is fused, and how many layers are computed twice; None fuses nothing.
        checkpointing: whether layers are computed twice at all; None leaves them as they are.
        kernel: what an earlier probe of the same run chose, which timing is not to overturn.

    Returns:
        The engine, and why it is laid out as it is.

    Raises:
        UnavailableError: nothing but stock TRL can run this model, which is left as it was.
    """
    given: Any = policy
    model = given.get_base_model() if hasattr(given, "get_base_model") else given
    decision = decide(model, device, autocast, kernel)
    if decision.layout is None:
        attention.install(model, decision.own)
        raise UnavailableError(f"the engine cannot run this model: {decision.reason}", "set engine: trl")
    fusion = Fusion()
    if packing is not None:
        fusion = fuse_as_configured(model, packing)
        if checkpointing is not None:
            # `auto` begins with the least memory
            wanted = None if packing.checkpoint_layers == "auto" else packing.checkpoint_layers
            checkpoint_layers(model, wanted if checkpointing else 0)
    return Engine(model, device, autocast, decision.layout, fusion, decision.own), decision


def detach(engine: Engine) -> None:
    """Give a model back its own attention and forwards; which layers are computed twice stays."""
    engine.fusion.undo()
    attention.install(engine.model, engine.own)
