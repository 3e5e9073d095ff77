"""Which layers get an adapter, on models of every kind: no kind of layer is left out in silence."""

import pytest
from engine.sweep import build
from training.tiny import make_model

from qdpo.config.schema import PROJECTIONS, LoraSection
from qdpo.errors import ConfigError
from qdpo.model.lora import attach, lora_layers
from qdpo.model.targets import check_left_out, targets_of
from qdpo.training.invariants import check_targets

HYBRIDS = {"qwen3_5_text": "linear_attn", "qwen3_next": "linear_attn", "lfm2": "conv"}
"""Tiny models whose layers take turns, and the kind that the usual names pass over."""


@pytest.mark.parametrize("kind", HYBRIDS)
def test_half_of_a_hybrid_is_not_left_out_in_silence(kind: str) -> None:
    model = build(kind)
    usual = [name for name in PROJECTIONS if name in targets_of(model, "all-linear")]
    with pytest.raises(ConfigError, match=f"no adapter on their {HYBRIDS[kind]}") as caught:
        attach(model, LoraSection(r=2, target_modules=usual, lora_dropout=0), seed=0)
    assert "--set lora.target_modules=all-linear" in str(caught.value.hint)
    section = LoraSection(r=2, target_modules=usual, leave_out=[HYBRIDS[kind]], lora_dropout=0)
    assert any(HYBRIDS[kind] in name for name in check_left_out(attach(build(kind), section, seed=0), [HYBRIDS[kind]]))


@pytest.mark.parametrize("kind", ["qwen3_5_text", "lfm2", "phi3", "gemma3_text", "gpt2", "llama"])
def test_all_linear_reaches_every_layer_but_the_head(kind: str) -> None:
    model = build(kind)
    if not targets_of(model, "all-linear"):
        assert kind == "gpt2"  # whose layers are no nn.Linear
        return
    section = LoraSection(r=2, target_modules="all-linear", lora_dropout=0)
    policy = attach(model, section, seed=0)
    assert not check_left_out(policy)
    assert "without" not in check_targets(policy, section).detail
    head = policy.get_output_embeddings()
    assert not any(layer is head for layer in lora_layers(policy).values())


def test_what_is_left_out_in_every_layer_is_as_it_was_asked_for() -> None:
    section = LoraSection(r=2, target_modules=["q_proj", "v_proj"])
    said = check_targets(attach(make_model("llama"), section, seed=0), section).detail
    assert "without: mlp.down_proj, mlp.gate_proj, mlp.up_proj, self_attn.k_proj, self_attn.o_proj" in said


def test_experts_in_one_tensor_are_named() -> None:
    with pytest.raises(ConfigError, match="holds all experts in one tensor") as caught:
        targets_of(build("qwen3_moe"), list(PROJECTIONS))
    assert "v_proj?" not in str(caught.value.hint)


def test_experts_without_an_adapter_are_refused_unless_they_are_left_out() -> None:
    section = LoraSection(r=2, target_modules="all-linear", lora_dropout=0)
    with pytest.raises(ConfigError, match="4 of 4 layers get no adapter on their experts") as caught:
        attach(build("qwen3_moe"), section, seed=0)
    assert "--set lora.leave_out=[experts]" in str(caught.value.hint)
    left = section.model_copy(update={"leave_out": ["experts"]})
    assert "experts.gate_up_proj" in check_targets(attach(build("qwen3_moe"), left, seed=0), left).detail
