"""On a grid every pass sees base and adapter as a file holds them, and gradients go straight through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine.toys import SHAPE
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from qdpo.engine.fuse import fuse
from qdpo.engine.on_grid import on_grid_of, put_on_grid
from qdpo.errors import UnavailableError
from qdpo.export.gguf.trained_grids import fit_grids
from qdpo.model.grid_file import Grids, placed, save_grids
from qdpo.model.lora import lora_layers

IDS = torch.arange(3, 40).view(1, -1)
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def toy(targets: list[str] = PROJECTIONS) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE | {"intermediate_size": 64})
    policy = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, lora_alpha=8, target_modules=targets)).eval()
    with torch.no_grad():
        for layer in lora_layers(policy).values():
            layer.lora_B["default"].weight.normal_(std=0.05)
    return policy


def grids_of(policy: Any, path: Path, kind: str = "q4_0") -> Grids:
    model = policy.get_base_model()
    save_grids(path, kind, fit_grids(model, model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}, kind))
    return Grids(path)


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, stands: Tensor) -> Tensor:
        return stands.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


@torch.enable_grad()
def plainly(policy: Any, grids: Grids, adapted: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients of a model that computes with the whole weight as one tensor."""
    layers = {f"{name}.weight": layer for name, layer in lora_layers(policy.get_base_model()).items()}
    dense = LlamaForCausalLM(policy.get_base_model().config).eval()
    state, leaves = {}, {}
    for name, parameter in policy.get_base_model().named_parameters():
        if ".lora_" in name:
            continue
        own = name.replace(".base_layer.", ".")
        base, grid = parameter.detach().clone(), grids.of(own)
        if own not in layers:
            state[own] = base if grid is None else placed(own, grid, base, None, torch.float32)
            continue
        assert grid is not None
        a, b = (getattr(layers[own], part)["default"].weight.detach().clone() for part in ("lora_A", "lora_B"))
        leaves[f"{own}.A"], leaves[f"{own}.B"] = a.requires_grad_(), b.requires_grad_()
        scale = layers[own].scaling["default"]
        change = (b @ a) * scale
        stands = placed(own, grid, base, (a.detach(), b.detach(), scale) if adapted else None, torch.float32)
        state[own] = StraightThrough.apply(base + change, stands)
    logits = torch.func.functional_call(dense, state, (IDS,)).logits
    loss = logits.log_softmax(-1).square().mean()
    found = torch.autograd.grad(loss, list(leaves.values()))
    return logits.detach(), dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("mlp", [True, False], ids=["fused MLP", "fused linear layers"])
def test_passes_and_gradients_are_those_of_the_whole_rounded_weight(tmp_path: Path, mlp: bool) -> None:
    policy = toy()
    grids = grids_of(policy, tmp_path / "grids")
    fuse(policy, mlp=mlp, norm=False)
    before = policy(IDS).logits.detach()
    assert put_on_grid(policy, grids) == 2 * 7 + 2
    expected, gradients = plainly(policy, grids, adapted=True)
    assert float((expected - before).abs().max()) > 1e-3, "the rounding is seen"
    logits = policy(IDS).logits
    torch.testing.assert_close(logits.detach(), expected, atol=1e-5, rtol=1e-4)
    logits.log_softmax(-1).square().mean().backward()
    for name, layer in lora_layers(policy.get_base_model()).items():
        for part in ("A", "B"):
            found = getattr(layer, f"lora_{part}")["default"].weight.grad
            torch.testing.assert_close(found, gradients[f"{name}.weight.{part}"], atol=1e-6, rtol=1e-3)


def test_without_the_adapter_it_is_the_rounded_base_and_a_changed_adapter_is_seen(tmp_path: Path) -> None:
    policy = toy()
    grids = grids_of(policy, tmp_path / "grids")
    fuse(policy)
    put_on_grid(policy, grids)
    with torch.no_grad():
        trained = policy(IDS).logits
        with policy.disable_adapter():
            reference = policy(IDS).logits
        torch.testing.assert_close(reference, plainly(policy, grids, adapted=False)[0], atol=1e-5, rtol=1e-4)
        assert torch.equal(policy(IDS).logits, trained)
        for layer in lora_layers(policy).values():
            layer.lora_B["default"].weight.data.mul_(-1)  # as bitsandbytes' optimizers do, beside autograd's counters
        assert not torch.equal(policy(IDS).logits, trained)
        for layer in lora_layers(policy).values():
            layer.lora_B["default"].weight.zero_()
        assert torch.equal(policy(IDS).logits, reference), "an adapter of zeros changes nothing"


def test_a_layer_that_would_be_computed_without_its_grid_is_refused(tmp_path: Path) -> None:
    policy = toy()
    grids = grids_of(policy, tmp_path / "grids")
    with pytest.raises(UnavailableError, match="cannot be rounded with its adapter"):
        put_on_grid(policy, grids)
    fusion = fuse(policy)
    put_on_grid(policy, grids)
    policy(IDS)
    fusion.undo()
    with pytest.raises(UnavailableError, match="without its grid"):
        policy(IDS)


def test_layers_without_an_adapter_are_on_their_grid_too(tmp_path: Path) -> None:
    policy = toy(["q_proj", "v_proj"])
    grids = grids_of(policy, tmp_path / "grids")
    fuse(policy)
    put_on_grid(policy, grids)
    gate = policy.get_base_model().model.layers[0].mlp.gate_proj
    grid = grids.of("model.layers.0.mlp.gate_proj.weight")
    assert grid is not None
    assert on_grid_of(gate) is None
    assert torch.equal(grid.nearest(gate.weight.detach()), gate.weight)
