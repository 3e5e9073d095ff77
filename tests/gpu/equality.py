"""The packed engine beside stock TRL: the same model, the same pairs, loss and gradient."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import torch
from gpu.bases import Settings, random_model
from gpu.precision import SeenProducts
from torch import Tensor

from benchmarks import models, packed, stock
from qdpo.data.pairs import TokenPair
from qdpo.training.metrics import Metrics


def beside_trl(
    base: Settings, device: torch.device, half: str | None, pairs: list[TokenPair], budget: int
) -> dict[str, Any]:
    """Loss and gradient of one global batch, by stock TRL and by the packed engine.

    Args:
        base: the model's configuration.
        device: where to compare; on a GPU TRL's head is its own Triton kernel, on a CPU what stands for it.
        half: `bf16` or `fp16`: autocast over a base in NF4; None: float32 throughout.
        pairs: the batch.
        budget: packed tokens of a pass.

    Returns:
        Relative differences from TRL with one pair at a time: of the packed engine, and of TRL with all pairs at once,
        which is what padding alone changes; and how many matrix products each did in which type.
    """
    with stock.stand_in() if device.type == "cpu" else contextlib.nullcontext():
        return _beside(base, device, half, pairs, budget)


def _beside(
    base: Settings, device: torch.device, half: str | None, pairs: list[TokenPair], budget: int
) -> dict[str, Any]:
    dtype = {None: torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[half]
    model = random_model(base, device, dtype, "none" if half is None else "nf4", True)
    trainer = stock.make_trainer(model, 16, checkpointing=True, half=half)
    models.give_lora_b_values(trainer.model)
    policy = trainer.model

    def with_trl(size: int) -> float:
        policy.train()
        return stock.step(trainer, stock.batches(trainer, pairs, size, device), len(pairs))

    products: dict[str, dict[str, int]] = {}

    def gradient_of(name: str, run: Any) -> tuple[float, Tensor]:
        policy.zero_grad()
        with SeenProducts() as types:
            loss = run()
        products[name] = types.seen
        return loss, torch.cat([p.grad.flatten().double() for p in policy.parameters() if p.grad is not None])

    loss, gradient = gradient_of("TRL", partial(with_trl, 1))
    padded_loss, padded = gradient_of("TRL, all at once", partial(with_trl, len(pairs)))
    settings = packed.Settings(budget=budget, cached=False)
    with packed.ready(policy, settings, device, trainer.accelerator.autocast) as engine:
        unused = torch.zeros(len(pairs), 2)
        ours, mine = gradient_of("packed", lambda: packed.step(policy, pairs, engine, settings, unused, Metrics()))
    return {
        "half": half,
        "head": _head(),
        "products": products,
        "loss": loss,
        "loss_difference": abs(ours / loss - 1),
        "gradient_difference": float((mine - gradient).norm() / gradient.norm()),
        "padding_loss_difference": abs(padded_loss / loss - 1),
        "padding_gradient_difference": float((padded - gradient).norm() / gradient.norm()),
    }


def _head() -> str:
    import trl.trainer.utils

    return str(vars(trl.trainer.utils)["_ChunkedLogProbFunction"].__module__)
