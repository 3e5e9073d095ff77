"""The probe's decisions on models that can be packed, that need a mask, and that cannot share prompts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine.toys import ARCHITECTURES, SHAPE, build, make_pairs, separate_logps
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from qdpo.engine import attention, fused_linear, probe
from qdpo.engine.engine import Engine
from qdpo.engine.fuse import fuse
from qdpo.engine.gradient_check import check_gradients
from qdpo.engine.layouts import Separate, cut_padded, longest, scores_of
from qdpo.engine.probe import decide
from qdpo.engine.recompute import checkpoint_layers
from qdpo.engine.refusal import refusal
from qdpo.errors import TrainingError

CPU = torch.device("cpu")


def other(kind: str, **changes: Any) -> Any:
    """A toy of an architecture that `toys` does not have."""
    config = AutoConfig.for_model(kind)
    shape = {key: value for key, value in {**SHAPE, **changes}.items() if hasattr(config, key)}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.float().requires_grad_(False)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_can_be_packed_is_packed(name: str, dtype: torch.dtype) -> None:
    decision = decide(build(name, dtype), CPU)
    assert decision.way == "packed", decision
    assert decision.errors["packed"] <= max(4 * decision.noise, probe.FLOOR[dtype])


def test_rounding_over_many_layers_is_not_taken_for_a_wrong_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 the packed row of a deep model differs by more than paddings do, and by less than kernels do."""
    torch.manual_seed(5)
    deep = {**SHAPE, "num_hidden_layers": 12, "hidden_size": 128, "head_dim": 32}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **deep))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model = model.to(torch.bfloat16).requires_grad_(False)
    decision = decide(model, CPU)
    assert decision.way == "packed", decision
    assert decision.kernels > 2 * decision.noise
    monkeypatch.setattr(attention, "_attend", lambda query, key, value, *rest, **more: value * 0 + value.mean())
    assert decide(model, CPU).way != "packed", "what is wrong is still found out"


@pytest.mark.parametrize(("kind", "way"), [("stablelm", "packed_mask"), ("gpt_oss", "packed_masks")])
def test_models_with_an_attention_of_their_own_get_a_mask(kind: str, way: str) -> None:
    model = other(kind, num_local_experts=4, num_experts_per_tok=2, sliding_window=6)
    decision = decide(model, CPU)
    assert decision.way == way, decision
    assert decision.layout is not None
    engine, pairs = Engine(model, CPU, layout=decision.layout), make_pairs()
    scores = engine.score_all(pairs, 60)
    torch.testing.assert_close(scores.logps, separate_logps(model, pairs), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["mamba2", "bloom"])
def test_what_cannot_share_prompts_is_scored_in_padded_rows(kind: str) -> None:
    model = other(kind, state_size=8, num_heads=8, head_dim=8, n_groups=1, expand=2, n_head=4, n_layer=2)
    decision = decide(model, CPU)
    assert decision.way == "unshared", decision
    assert decision.layout is not None
    engine, pairs = Engine(model, CPU, layout=decision.layout), make_pairs()
    scores = engine.score_all(pairs, 60)
    torch.testing.assert_close(scores.logps, separate_logps(model, pairs), rtol=1e-4, atol=1e-3)


def test_a_window_longer_than_the_probe_is_tried_short(monkeypatch: pytest.MonkeyPatch) -> None:
    model = other("mistral", sliding_window=100)
    windows = []
    plain = attention.packed_attention

    def spy(*args: Any, **kwargs: Any) -> Any:
        windows.append(kwargs.get("sliding_window"))
        return plain(*args, **kwargs)

    monkeypatch.setattr(attention, "packed_attention", spy)
    assert decide(model, CPU).way == "packed"
    assert windows
    assert set(windows) == {probe.WINDOW}
    assert model.config.sliding_window == 100


def test_an_attention_that_ignores_the_pack_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = attention.packed_attention

    def whole_row(*args: Any, qdpo_pack: Any = None, **kwargs: Any) -> Any:
        *tensors, mask = args
        return plain(*tensors, None if qdpo_pack is not None else mask, **kwargs)

    monkeypatch.setattr(attention, "packed_attention", whole_row)
    decision = decide(build("llama", torch.float32), CPU)
    assert decision.way == "packed_mask"
    assert decision.errors["packed"] > 1e-3


def test_a_probe_that_could_not_tell_right_from_wrong_is_not_trusted() -> None:
    model = build("llama", torch.float32)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()  # no token sees any other
    decision = decide(model, CPU)
    assert decision.way == "unshared"
    assert "too little to be told from rounding" in decision.reason


def test_a_model_that_does_not_run_is_left_to_trl() -> None:
    class Broken(nn.Module):
        config = build("llama").config

        @property
        def base_model(self) -> Any:
            raise RuntimeError("no backbone here")

    decision = decide(Broken(), CPU)
    assert decision.way == "trl"
    assert "no backbone here" in decision.reason


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"model_type": "jamba"}, "state"),
        ({"model_type": "qwen3_5_moe_text"}, "state"),
        ({"model_type": "bloom"}, "ALiBi"),
        ({"model_type": "falcon", "alibi": True}, "ALiBi"),
        ({"model_type": "glm_moe_dsa"}, "selects"),
        ({"model_type": "new", "index_topk": 64}, "selects"),
        ({"model_type": "new", "layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ({"model_type": "llama4", "layer_types": ["chunked_attention"]}, "chunked"),
        ({"model_type": "mistral", "layer_types": ["full_attention", "sliding_attention"]}, None),
        ({"model_type": "llama"}, None),
    ],
)
def test_refusals_by_name(settings: dict[str, Any], word: str | None) -> None:
    config = SimpleNamespace(**settings)
    config.get_text_config = lambda: config
    reason = refusal(config)
    assert (reason is None) if word is None else (reason is not None and word in reason)


@pytest.mark.parametrize("budget", [1, 40, 90, 10_000])
def test_padded_groups_respect_the_budget(budget: int) -> None:
    pairs = make_pairs(1) + make_pairs(2)
    groups = cut_padded(pairs, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(pairs)))
    for group in groups:
        assert len(group) == 1 or 2 * len(group) * max(longest(pairs[i]) for i in group) <= budget


def test_padded_scores_do_not_depend_on_the_padding() -> None:
    model, pairs = build("llama"), make_pairs()
    first, second = (
        scores_of(model, Separate().predicting(model, pairs, range(len(pairs)), CPU, padding), 2 * len(pairs))
        for padding in (0, 5)
    )
    torch.testing.assert_close(first.logps, second.logps, rtol=0, atol=1e-5)
    assert first.tokens.tolist() == [len(p.chosen) for p in pairs] + [len(p.rejected) for p in pairs]


def adapted() -> Engine:
    from engine.test_fuse import adapted as policy_of

    policy = policy_of("llama", torch.float32)
    fusion = fuse(policy)
    checkpoint_layers(policy, 2)
    return Engine(policy.get_base_model(), CPU, fusion=fusion)


def test_gradients_agree() -> None:
    engine = adapted()
    difference = check_gradients(engine)
    assert difference is not None
    assert 0 < difference < 1e-4
    assert engine.model.config._attn_implementation == attention.NAME
    assert all("forward" in module.__dict__ for module in engine.fusion.modules)


def test_a_wrong_gradient_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = adapted()
    plain = fused_linear.lora_weight_gradients
    monkeypatch.setattr(fused_linear, "lora_weight_gradients", lambda *args: tuple(-part for part in plain(*args)))
    with pytest.raises(TrainingError, match="differs from that of separate rows"):
        check_gradients(engine)
