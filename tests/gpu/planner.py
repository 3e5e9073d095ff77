"""The planner's estimate beside the memory that one step and one scoring pass really take."""

from __future__ import annotations

from typing import Any

import torch
from gpu.bases import random_model, token_pairs

from qdpo.config.schema import RunConfig
from qdpo.hardware import Device
from qdpo.model.lora import attach, disable_dropout
from qdpo.planner.calibrate import make_step, tensor_bytes
from qdpo.planner.cards import card_of
from qdpo.planner.data import Lengths
from qdpo.planner.estimate import estimate
from qdpo.planner.meter import peak_bytes
from qdpo.planner.settings import compute_type, settings_for
from qdpo.planner.shapes import Shape


def beside_plan(config: RunConfig, shape: Shape, lengths: Lengths, device: Device) -> dict[str, Any]:
    """Build base and adapter, run the passes that the plan is made for, and measure.

    Args:
        config: a preset's.
        shape: its base's.
        lengths: of its data, as the plan takes them.
        device: where to measure.

    Returns:
        Bytes, estimated and measured, of what is loaded, of a step, of a pass without gradients and of the highest of
        these; with each its relative error.
    """
    settings = settings_for(config, card_of(device), lengths)
    found = estimate(shape, settings)
    on_card = device.kind == "cuda"
    start = torch.cuda.memory_allocated() if on_card else 0
    dtype = getattr(torch, compute_type(config, card_of(device))[0])
    base = random_model(shape, device.torch, dtype, config.model.quantization, config.model.double_quant)
    policy = attach(base, config.lora, config.train.seed)
    disable_dropout(policy)
    loaded = torch.cuda.memory_allocated() - start if on_card else tensor_bytes(policy)

    packs = settings.train_packs[0].pairs
    step = make_step(
        policy, dtype, device, config, token_pairs([*packs, *packs] if settings.several else [*packs], shape.vocab)
    )
    step()  # the optimizer's state and the libraries' workspaces exist from the second step on

    def level() -> int:
        if on_card:
            return torch.cuda.memory_allocated() - start
        states = [value for state in step.optimizer.state.values() for value in state.values()]
        return tensor_bytes(policy) + sum(value.nbytes for value in states if isinstance(value, torch.Tensor))

    stepping = level() + peak_bytes(step, device.torch)
    wide = token_pairs(list(settings.scoring_packs[0].pairs), shape.vocab, seed=1)
    budget = config.packing.tokens_without_grad
    scoring = level() + peak_bytes(lambda: step.engine.score_all(wide, budget), device.torch)
    estimated = {
        "loaded": sum(size for name, size in found.parts.items() if _is_loaded(name)),
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


def _is_loaded(part: str) -> bool:
    return part.startswith(("NF4", "scales of", "embedding", "linear weights", "LoRA weights"))
