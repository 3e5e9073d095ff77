"""The gradient check before training: what it holds, and what it does when memory runs out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from engine.test_fuse import adapted as policy_of
from peft import LoraConfig, get_peft_model
from planner.grid import CPU
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from qdpo.engine import attention, fused_linear, fused_mlp, gradient_check
from qdpo.engine.engine import Engine
from qdpo.engine.fuse import fuse
from qdpo.engine.gradient_check import check_gradients
from qdpo.engine.layouts import Separate
from qdpo.engine.probe import probe_pairs
from qdpo.engine.recompute import checkpoint_layers
from qdpo.errors import MemoryShortageError, TrainingError
from qdpo.planner.meter import peak_bytes

LAYERS = 8
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def wide(rank: int) -> tuple[Engine, int]:
    """A model whose adapter weighs more than its activations; and bytes of the adapter's gradients."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        vocab_size=97,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).requires_grad_(False)
    policy: Any = get_peft_model(model, LoraConfig(r=rank, target_modules=TARGETS, task_type="CAUSAL_LM"))
    attention.install(model)
    fusion = fuse(policy)
    checkpoint_layers(policy, LAYERS - 1)
    return Engine(model, CPU, fusion=fusion), sum(p.nbytes for p in policy.parameters() if p.requires_grad)


def copies_held(check: Any) -> float:
    """Sets of gradients that a check holds at its highest point; a small adapter shows what the passes take."""
    (small, little), (large, much) = wide(4), wide(256)
    few = peak_bytes(lambda: check(small), CPU)
    many = peak_bytes(lambda: check(large), CPU)
    return (many - few) / (much - little)


def with_copies(engine: Engine) -> None:
    """Both gradients whole, and side by side."""
    model = engine.model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    pairs = probe_pairs(97)

    def gradient(logps: Tensor) -> Tensor:
        return torch.cat([g.flatten().float() for g in torch.autograd.grad(logps.sum(), trained)])

    mine = gradient(engine.score(pairs, range(len(pairs))).logps)
    attention.install(model, engine.own)
    with engine.fusion.suspended():
        theirs = gradient(replace(engine, layout=Separate()).score(pairs, range(len(pairs))).logps)
    attention.install(model)
    assert (mine - theirs).norm() / theirs.norm() < 1e-3


def test_one_set_of_gradients_is_held_and_a_layer_more() -> None:
    held = copies_held(check_gradients)
    print(f"{held:.2f} sets of gradients")
    # one set, one layer's, and the rank's share of the activations
    assert held < 1.5
    assert copies_held(with_copies) > 2.5


def adapted() -> Engine:
    policy = policy_of("llama", torch.float32)
    fusion = fuse(policy)
    checkpoint_layers(policy, 2)
    return Engine(policy.get_base_model(), CPU, fusion=fusion)


def short_of_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Let memory run out in the middle of comparing more than so many weights; says how many were compared."""
    compare, seen = gradient_check._compare, []

    def limited(engine: Any, part: list[nn.Parameter]) -> Any:
        seen.append(len(part))
        if len(part) > most:
            part[0].grad = torch.ones_like(part[0])
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compare(engine, part)

    monkeypatch.setattr(gradient_check, "_compare", limited)
    return seen


def test_weights_are_compared_some_at_a_time_when_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = adapted()
    expected = check_gradients(engine)
    seen = short_of_memory(monkeypatch, most=7)
    assert check_gradients(engine) == pytest.approx(expected, rel=1e-6)
    assert seen == [28, 14, 7, 7, 7, 7]
    assert all(parameter.grad is None for parameter in engine.model.parameters())
    assert "out of memory in the gradient check: comparing 7 of 28 weights at a time" in capsys.readouterr().err


def test_what_cannot_be_made_smaller_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = adapted()
    short_of_memory(monkeypatch, most=0)
    with pytest.raises(MemoryShortageError, match="gradient check before training"):
        check_gradients(engine)


@pytest.mark.parametrize("part", ["missing", "not a number"])
def test_a_gradient_that_is_no_number_is_found_out(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = adapted()
    plain, factor = fused_linear.lora_weight_gradients, 0.0 if part == "missing" else float("nan")

    def wrong(*args: Any) -> tuple[Tensor, ...]:
        inner, *gradients = plain(*args)
        return inner, *(factor * gradient for gradient in gradients)

    for module in (fused_linear, fused_mlp):
        monkeypatch.setattr(module, "lora_weight_gradients", wrong)
    with pytest.raises(TrainingError, match=r"differs from that of separate rows by (inf|nan)"):
        check_gradients(engine)


def test_the_model_is_left_as_it_was_when_the_check_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = adapted()
    engine.model.eval()

    def fail(*args: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(Separate, "predicting", fail)
    with pytest.raises(RuntimeError, match="broken"):
        check_gradients(engine)
    assert engine.model.config._attn_implementation == attention.NAME
    assert all("forward" in module.__dict__ for module in engine.fusion.modules)
    assert not engine.model.training
