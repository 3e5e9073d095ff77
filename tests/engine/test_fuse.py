"""Fused functions against the modules they replace: same output, same gradients, and left alone where they differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine.toys import ARCHITECTURES, build, in_float64, make_pairs, score_pack
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from qdpo.engine import attention, fused_mlp
from qdpo.engine.fuse import fuse
from qdpo.engine.fused_norm import FusedRmsNorm
from qdpo.engine.layout import build_pack
from qdpo.engine.recompute import checkpoint_layers

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj"]


def adapted(name: str, dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    """A toy with an adapter whose lora_B is not zero."""
    model = build(name, dtype)
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | settings)
    policy = get_peft_model(model, config, autocast_adapter_dtype=False).to(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in policy.named_parameters():
            if "lora_B" in key:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    attention.install(model)
    return policy


def run(policy: Any) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities of the awkward pairs, and the adapter's gradients."""
    pairs = make_pairs()
    values = score_pack(policy.get_base_model(), build_pack(pairs, range(len(pairs)))).logps
    factors = torch.linspace(-1.0, 1.5, len(values), dtype=values.dtype)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    return values.detach(), list(torch.autograd.grad((factors * values).sum(), trained))


def assert_same(mine: tuple[Tensor, list[Tensor]], theirs: tuple[Tensor, list[Tensor]], atol: float) -> None:
    torch.testing.assert_close(mine[0], theirs[0], rtol=0, atol=atol)
    for a, b in zip(mine[1], theirs[1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma_tied", "gemma2", "qwen3", "phi3"])
@pytest.mark.parametrize("kind", ["linear", "mlp", "norm", "all"])
def test_fused_equals_plain(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_float64(monkeypatch)
    policy = adapted(name)
    plain = run(policy)
    fusion = fuse(policy, **{switch: kind in (switch, "all") for switch in ("linear", "mlp", "norm")})
    expected = {"linear": "lora", "mlp": "mlp", "norm": "norm"}.get(kind, "lora")
    if not (name == "phi3" and kind == "mlp"):  # its gate and up are one matrix: no gated MLP to be found
        assert fusion.counts[expected] > 0
    assert not fusion.left
    assert_same(run(policy), plain, 1e-10)
    fusion.undo()
    assert not any("forward" in module.__dict__ for module in policy.get_base_model().model.modules())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_every_number_of_checkpointed_layers_gives_the_same_gradients(name: str, fused: bool) -> None:
    policy = adapted(name)
    policy.train()
    if fused:
        fuse(policy)
    plain = run(policy)
    for count, expected in ((0, 0), (1, 1), (2, 2), (None, 1), (9, 2)):
        assert checkpoint_layers(policy, count) == expected
        again = run(policy)
        assert torch.equal(again[0], plain[0])
        assert all(torch.equal(a, b) for a, b in zip(again[1], plain[1], strict=True))


def test_the_output_left_out_when_recomputing_is_really_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = adapted("llama")
    policy.train()
    fuse(policy)
    plain = run(policy)
    monkeypatch.setattr(fused_mlp, "PLACEHOLDER", float("nan"))
    checkpoint_layers(policy, 2)
    assert_same(run(policy), plain, 0.0)


def test_a_norm_behind_the_mlp_keeps_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = adapted("gemma2")
    policy.train()
    fuse(policy)
    monkeypatch.setattr(fused_mlp, "PLACEHOLDER", float("nan"))
    checkpoint_layers(policy, 2)
    assert all(torch.isfinite(gradient).all() for gradient in run(policy)[1])


def test_disabled_adapters_give_the_base() -> None:
    policy = adapted("llama", torch.float32)
    pairs = make_pairs()
    pack = build_pack(pairs, range(len(pairs)))
    with torch.no_grad(), policy.disable_adapter():
        base = score_pack(policy.get_base_model(), pack).logps
    fuse(policy)
    with torch.no_grad(), policy.disable_adapter():
        torch.testing.assert_close(score_pack(policy.get_base_model(), pack).logps, base, rtol=1e-6, atol=1e-5)


def test_dropout_and_special_adapters_take_peft_s_own_path() -> None:
    policy = adapted("llama", lora_dropout=0.5)
    policy.train()
    fuse(policy)
    torch.manual_seed(0)
    first = run(policy)[0]
    torch.manual_seed(1)
    assert not torch.equal(run(policy)[0], first)
    policy.eval()
    torch.testing.assert_close(run(policy)[0], run(policy)[0], rtol=0, atol=0)
    dora = adapted("llama", use_dora=True)
    plain = run(dora)
    fuse(dora)
    assert_same(run(dora), plain, 1e-6)


def test_the_check_leaves_the_adapter_as_it_was() -> None:
    policy = adapted("llama", torch.float32)
    before = {name: parameter.clone() for name, parameter in policy.named_parameters()}
    state = torch.get_rng_state()
    fuse(policy)
    assert all(torch.equal(parameter, before[name]) for name, parameter in policy.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)


class OddRMSNorm(nn.Module):
    """Looks like an RMSNorm and is something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8), requires_grad=False)
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        """Divides by the mean absolute value."""
        return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.eps)


def test_what_behaves_differently_is_left_alone() -> None:
    model = nn.Sequential(OddRMSNorm())
    fusion = fuse(model)
    assert fusion.left == {"norm": 1}
    assert "forward" not in model[0].__dict__
    assert fusion.describe() == "nothing fused, 1 RMSNorms left alone"


@pytest.mark.parametrize("plus_one", [False, True])
def test_norm_gradient(plus_one: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: FusedRmsNorm.apply(x, weight, 1e-6, plus_one), (x,))


def test_all_toys_keep_their_gradients_in_fp32() -> None:
    for name in ARCHITECTURES:
        policy = adapted(name, torch.float32)
        plain = run(policy)
        fuse(policy)
        for mine, theirs in zip(run(policy)[1], plain[1], strict=True):
            assert (mine - theirs).norm() <= 1e-4 * theirs.norm() + 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3"])
def test_half_precision_with_fp32_adapters_is_fused_and_keeps_its_gradients(name: str, dtype: torch.dtype) -> None:
    model = build(name, dtype)
    policy = get_peft_model(model, LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in policy.named_parameters():
            if "lora_B" in key:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    attention.install(model)
    with torch.autocast("cpu", dtype):
        plain = run(policy)
    fusion = fuse(policy)
    with torch.autocast("cpu", dtype):
        fused = run(policy)
    assert not fusion.left
    assert fusion.counts["mlp"] == 2
    mine, theirs = (torch.cat([gradient.flatten() for gradient in gradients]) for _, gradients in (fused, plain))
    assert mine.dtype == torch.float32
    assert (mine - theirs).norm() < {torch.bfloat16: 0.1, torch.float16: 0.02}[dtype] * theirs.norm()
