"""Kept dequantized weights: the same numbers, counted in bytes, and given back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from engine.toys import build, make_pairs, score_pack
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from qdpo.engine import attention
from qdpo.engine.fuse import fuse
from qdpo.engine.kept import bytes_to_keep, keep_dequantized, kept_weight
from qdpo.engine.layout import build_pack
from qdpo.engine.recompute import decoder_layers

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def policy() -> Any:
    """A toy whose decoder is in NF4 with double quantization, with a fused adapter whose lora_B is not zero."""
    model = build("llama", torch.float32)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and ".layers." in path:
            layer = Linear4bit(module.in_features, module.out_features, False, torch.float32, True, "nf4")
            layer.load_state_dict({"weight": module.weight.data})
            model.set_submodule(path, layer.to("cpu"))
            model.get_submodule(path).support_avx512bf16_for_cpu = False
    model.requires_grad_(False)
    model.is_loaded_in_4bit = True
    config = LoraConfig(r=4, lora_alpha=6, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    policy = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    attention.install(model)
    fusion = fuse(model)
    assert fusion.counts["mlp"] == len(decoder_layers(model))
    return policy


def run(policy: Any) -> list[Tensor]:
    pairs = make_pairs()
    values = score_pack(policy.get_base_model(), build_pack(pairs, range(len(pairs)))).logps
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    factors = torch.linspace(-1.0, 1.5, len(values))
    return [values.detach(), *torch.autograd.grad((factors * values).sum(), trained)]


def linears(model: nn.Module, layer: int) -> list[Any]:
    return [module for module in decoder_layers(model)[layer].modules() if isinstance(module, Linear4bit)]


def test_every_number_of_kept_layers_gives_the_same_bits(policy: Any) -> None:
    model = policy.get_base_model()
    before = run(policy)
    layers = len(decoder_layers(model))
    for count in (1, layers, 0):
        assert keep_dequantized(model, count) == count
        for mine, theirs in zip(run(policy), before, strict=True):
            assert torch.equal(mine, theirs)


def test_a_kept_weight_is_what_is_used(policy: Any) -> None:
    """Without this, the comparison above would say nothing."""
    model = policy.get_base_model()
    before = run(policy)[0]
    keep_dequantized(model, 1)
    kept = kept_weight(linears(model, 0)[0])
    assert kept is not None
    kept.add_(0.01)
    assert not torch.equal(run(policy)[0], before)


def test_what_is_kept_has_the_bytes_that_were_promised(policy: Any) -> None:
    model = policy.get_base_model()
    whole = sum(module.in_features * module.out_features * 4 for module in linears(model, 0))
    scales = sum(module.weight.quant_state.absmax.numel() for module in linears(model, 0))
    layers = len(decoder_layers(model))
    assert bytes_to_keep(model, 0) == 0
    assert bytes_to_keep(model, 1) == whole + 3 * scales * (layers - 1)
    assert bytes_to_keep(model, layers) == layers * whole
    keep_dequantized(model, 1)
    held = [weight for module in linears(model, 0) if (weight := kept_weight(module)) is not None]
    assert sum(weight.nbytes for weight in held) == whole
    assert all(not module.weight.quant_state.nested for module in linears(model, 1))
    # the scales are expanded: nothing more is to be had from them
    assert bytes_to_keep(model, 1) == whole


def test_giving_back_leaves_no_weight_behind(policy: Any) -> None:
    model = policy.get_base_model()
    keep_dequantized(model, 2)
    assert keep_dequantized(model, 0) == 0
    assert all(kept_weight(module) is None for layer in (0, 1) for module in linears(model, layer))


def test_a_model_without_4_bit_layers_keeps_nothing() -> None:
    model = build("llama", torch.float32)
    assert (bytes_to_keep(model, 2), keep_dequantized(model, 2)) == (0, 0)
