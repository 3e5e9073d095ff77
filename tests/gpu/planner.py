"""The planner's estimate beside the memory that one step and one scoring pass really take."""

from __future__ import annotations

from typing import Any

import torch
from gpu.bases import Settings, random_model, token_pairs

from qdpo.config.schema import RunConfig
from qdpo.hardware import Device
from qdpo.model.lora import attach, disable_dropout
from qdpo.planner.calibrate import make_step, tensor_bytes
from qdpo.planner.cards import card_of
from qdpo.planner.data import Lengths
from qdpo.planner.estimate import estimate
from qdpo.planner.find import Base
from qdpo.planner.lengths import heaviest
from qdpo.planner.meter import peak_bytes
from qdpo.planner.plays import plays_for
from qdpo.planner.settings import compute_type, settings_for


def beside_plan(config: RunConfig, base: Settings, lengths: Lengths, device: Device) -> dict[str, Any]:
    """Build base and adapter, run the passes that the plan is made for, and measure.

    Args:
        config: a preset's.
        base: configuration of its base.
        lengths: of its data, as the plan takes them.
        device: where to measure.

    Returns:
        Bytes, estimated and measured, of what is loaded, of a step, of a pass without gradients and of the highest of
        these; with each its relative error.
    """
    card = card_of(device)
    known = Base("random weights", base, "")
    settings, plays = settings_for(config, known, card, lengths), plays_for(known, config, card)
    found = estimate(plays, settings)
    on_card = device.kind == "cuda"
    start = torch.cuda.memory_allocated() if on_card else 0
    dtype = getattr(torch, compute_type(config, known, card)[0])
    model = random_model(base, device.torch, dtype, config.model.quantization, config.model.double_quant)
    policy = attach(model, config.lora, config.train.seed)
    disable_dropout(policy)
    loaded = torch.cuda.memory_allocated() - start if on_card else tensor_bytes(policy)

    packs = list(heaviest(settings.train_packs)[0].pairs)
    pairs = token_pairs(packs * 2 if settings.several else packs, base["vocab_size"])
    step = make_step(policy, dtype, device, config, pairs)
    step()  # the optimizer's state and the libraries' workspaces exist from the second step on

    def level() -> int:
        if on_card:
            return torch.cuda.memory_allocated() - start
        states = [value for state in step.optimizer.state.values() for value in state.values()]
        return tensor_bytes(policy) + sum(value.nbytes for value in states if isinstance(value, torch.Tensor))

    stepping = level() + peak_bytes(step, device.torch)
    wide = token_pairs(list(heaviest(settings.heldout_packs)[0].pairs), base["vocab_size"], seed=1)
    budget = config.packing.tokens_without_grad
    scoring = level() + peak_bytes(lambda: step.engine.score_all(wide, budget), device.torch)
    estimated = {
        "loaded": sum(plays.model.static.values()),
        "step": max(found.phases[name] for name in ("forward", "backward", "step")),
        # a run's gradients are gone when it evaluates, and so are those of `step`
        "scoring": found.phases["evaluation"],
    }
    measured = {"loaded": loaded, "step": stepping, "scoring": scoring}
    estimated["peak"], measured["peak"] = (max(v["step"], v["scoring"]) for v in (estimated, measured))
    return {
        "settings": {
            "tokens_per_micro_batch": config.packing.tokens_per_micro_batch,
            "tokens_without_grad": budget,
            "rank": config.lora.r,
            "optim": config.train.optim,
            "compute": str(dtype).removeprefix("torch."),
        },
        **{
            name: {
                "estimated_bytes": round(estimated[name]),
                "measured_bytes": measured[name],
                "error": estimated[name] / measured[name] - 1,
            }
            for name in measured
        },
    }
