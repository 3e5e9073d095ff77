"""What a step ran is counted, and a promise that was not kept stops the run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine.test_fuse import adapted, run
from torch import nn

from qdpo.engine.fuse import Fusion, fuse
from qdpo.engine.used import Products, Used, check_used
from qdpo.errors import TrainingError


def used_by(policy: Any, fusion: Fusion, dtype: torch.dtype | None) -> Used:
    fusion.calls.clear()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None), Products() as products:
        run(policy)
    return Used.of(fusion, products)


def test_fused_calls_and_products_are_counted() -> None:
    policy = adapted("llama", torch.float32)
    fusion = fuse(policy)
    used = used_by(policy, fusion, torch.bfloat16)
    layers = fusion.counts["mlp"]
    assert used.fused == {"lora": 4 * layers, "mlp": layers}
    assert used.plain == {}
    assert set(used.products) == {"bfloat16", "float32"}  # the toy's head is fp32
    assert used.products["bfloat16"] > used.products["float32"]
    check_used(policy, fusion, used)
    assert used.text().startswith(f"{4 * layers} LoRA linears and {layers} gated MLPs ran as one function; products: ")


def test_types_that_do_not_fit_are_seen_and_stop_the_run() -> None:
    """A half-precision base with fp32 adapters and no autocast: PEFT runs it, and nothing is fused."""
    policy = adapted("llama", torch.float32)
    fusion = fuse(policy)
    for name, parameter in policy.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    used = used_by(policy, fusion, None)
    assert used.fused == {}
    assert used.plain["lora"] > 0
    with pytest.raises(TrainingError, match=r"14 LoRA linears not.*|.* not") as caught:
        check_used(policy, fusion, used)
    assert "qdpo doctor" in str(caught.value.hint)


def test_one_call_that_was_not_fused_is_enough() -> None:
    fusion = Fusion()
    fusion.counts.update(lora=14, mlp=2)
    with pytest.raises(TrainingError, match="1 LoRA linears not"):
        check_used(nn.Module(), fusion, Used({"lora": 27, "mlp": 4}, {"lora": 1}, {}))
    check_used(nn.Module(), fusion, Used({"lora": 28, "mlp": 4}, {}, {}))


def test_nothing_is_promised_with_dropout_or_without_fusing() -> None:
    fusion = Fusion()
    check_used(nn.Module(), fusion, Used({}, {}, {}))
    fusion.counts.update(lora=14)
    check_used(nn.Sequential(nn.Dropout(0.1)), fusion, Used({}, {"lora": 28}, {}))
    with pytest.raises(TrainingError):
        check_used(nn.Sequential(nn.Dropout(0.0)), fusion, Used({}, {"lora": 28}, {}))
