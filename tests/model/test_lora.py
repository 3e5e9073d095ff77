"""Attaching the adapter: where it was asked for, in fp32, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from training.tiny import Tiny, make_model

from qdpo.config.schema import LoraSection, ModelSection
from qdpo.errors import ConfigError
from qdpo.hardware import Device
from qdpo.model.load import load_base
from qdpo.model.lora import attach, disable_dropout, lora_layers, trainable
from qdpo.model.targets import targets_of
from qdpo.run.checkpoint import write_adapter

LORA = LoraSection(r=4, lora_alpha=8)


def weights(policy: PeftModel) -> dict[str, torch.Tensor]:
    """Copies of the trainable weights."""
    return {name: p.detach().clone() for name, p in trainable(policy).items()}


def test_only_the_named_targets_get_an_adapter() -> None:
    policy = attach(make_model("llama"), LoraSection(target_modules=["q_proj", "up_proj"]), seed=0)
    names = sorted(name.split(".layers.")[1] for name in lora_layers(policy))
    assert names == ["0.mlp.up_proj", "0.self_attn.q_proj", "1.mlp.up_proj", "1.self_attn.q_proj"]
    assert all("lora_" in name for name in trainable(policy))
    assert len(trainable(policy)) == 2 * len(names)


def test_settings_reach_peft() -> None:
    section = LoraSection(r=4, lora_alpha=8, lora_dropout=0.25, use_rslora=True)
    config = attach(make_model("llama"), section, seed=0).peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.25)
    assert (config.use_rslora, config.bias, config.task_type) == (True, "none", "CAUSAL_LM")


def test_on_a_4_bit_base_in_half_precision_the_adapter_is_fp32(tiny: Tiny) -> None:
    model = ModelSection(name=str(tiny.model), dtype="bfloat16")
    policy = attach(load_base(model, Device("cpu", "CPU", None, 1)).model, LORA, seed=0)
    assert len(trainable(policy)) == 28
    assert {p.dtype for p in trainable(policy).values()} == {torch.float32}


def test_a_seed_decides_the_initial_weights() -> None:
    first, same, other = (weights(attach(make_model("llama"), LORA, seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    changed = [name for name in first if not torch.equal(first[name], other[name])]
    assert changed == [name for name in first if "lora_A" in name]


def test_a_new_adapter_does_nothing() -> None:
    ids = torch.arange(8)[None]
    model = make_model("llama").eval()
    expected = model(ids).logits
    assert torch.equal(attach(model, LORA, seed=0).eval()(ids).logits, expected)


def test_continues_a_saved_adapter_in_fp32(tmp_path: Path) -> None:
    policy = attach(make_model("llama"), LORA, seed=0)
    with torch.no_grad():
        for parameter in trainable(policy).values():
            parameter.normal_()
    write_adapter(policy, tmp_path, "base")
    again = attach(make_model("llama").bfloat16(), LORA, seed=5, adapter=str(tmp_path))
    expected = weights(policy)
    assert weights(again).keys() == expected.keys()
    for name, weight in weights(again).items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, expected[name])


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_adapter(attach(make_model("llama"), LORA, seed=0), tmp_path, "base")
    (tmp_path / "adapter_config.json").write_text(
        (tmp_path / "adapter_config.json").read_text().replace('"r": 4', '"r": 8')
    )
    with pytest.raises(ConfigError, match="does not fit this base"):
        attach(make_model("llama"), LORA, seed=0, adapter=str(tmp_path))
    with pytest.raises(ConfigError, match="does not fit this base"):
        attach(make_model("llama"), LORA, seed=0, adapter=str(tmp_path / "nowhere"))


def test_the_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="output head lm_head") as caught:
        attach(make_model("llama"), LoraSection(target_modules=["q_proj", "lm_head"]), seed=0)
    assert caught.value.hint is not None
    assert "frozen" in caught.value.hint


@pytest.mark.parametrize(("target", "guess"), [("q_prj", "did you mean q_proj? "), ("w1", "")])
def test_an_unknown_target_is_named_with_what_there_is(target: str, guess: str) -> None:
    with pytest.raises(ConfigError, match=f"no linear layer {target}\n") as caught:
        targets_of(make_model("llama"), ["v_proj", target])
    assert caught.value.hint is not None
    names = "it has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    assert caught.value.hint == f"{guess}{names}; all-linear takes them all: --set lora.target_modules=all-linear"


def test_the_embedding_is_no_linear_layer() -> None:
    with pytest.raises(ConfigError, match="no linear layer embed_tokens"):
        targets_of(make_model("llama"), ["embed_tokens"])


def test_disable_dropout_turns_it_off_and_keeps_the_setting() -> None:
    policy = attach(make_model("llama"), LoraSection(r=4, lora_dropout=0.5), seed=0).train()
    dropouts = [m for m in policy.modules() if isinstance(m, nn.Dropout) and m.p == 0.5]
    assert len(dropouts) == 14
    disable_dropout(policy)
    assert {m.p for m in dropouts} == {0.0}
    assert policy.peft_config["default"].lora_dropout == 0.5
