"""Every check that a run makes before its first step fails on the fault that it is there for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from training.tiny import Callback, Tiny, make_model, make_tokenizer, train_tiny, with_callbacks

from qdpo.config.loss import LossSettings
from qdpo.config.schema import LoraSection, ModelSection
from qdpo.data.pairs import TokenPair
from qdpo.data.template import Template, load_template
from qdpo.engine import attention
from qdpo.engine.engine import Engine
from qdpo.errors import TrainingError
from qdpo.hardware import find_device
from qdpo.model.load import load_base
from qdpo.model.lora import attach, lora_layers
from qdpo.training import invariants

LORA = LoraSection(r=4)
BOS, END = 0, 1
TEMPLATE = Template("any", "test", frozenset({END}))
GOOD = [TokenPair(i, [BOS, 40 + i, 50], [60, 61, END], [60, 71 + i, 72, END]) for i in range(4)]


@pytest.fixture
def policy() -> PeftModel:
    policy = attach(make_model("llama"), LORA, seed=0)
    attention.install(policy.get_base_model())
    return policy


def check_equal(policy: PeftModel, *, fresh: bool = True, loss: LossSettings | None = None) -> invariants.Check:
    engine = Engine(policy.get_base_model(), torch.device("cpu"))
    return invariants.check_policy_is_reference(engine, policy, GOOD, loss or LossSettings(), budget=64, fresh=fresh)


def test_a_sound_start_passes_every_check(policy: PeftModel) -> None:
    assert "14 layers" in invariants.check_targets(policy, LORA).detail
    assert "loss 0.693147 (ln 2)" in check_equal(policy).detail
    assert invariants.check_finite(policy).detail
    assert "8 sequences" in invariants.check_sequences(GOOD, TEMPLATE, BOS, 100).detail
    assert "4 pairs" in invariants.check_prefix(GOOD).detail


@pytest.mark.parametrize("side", ["lora_A", "lora_B"])
@pytest.mark.parametrize("fault", ["bfloat16", "frozen"])
def test_an_adapter_that_is_not_trained_in_fp32(side: str, fault: str, policy: PeftModel) -> None:
    name, layer = list(lora_layers(policy).items())[5]
    weight = getattr(layer, side)["default"].weight
    if fault == "bfloat16":
        weight.data = weight.data.bfloat16()
    else:
        weight.requires_grad_(False)
    with pytest.raises(TrainingError, match=f"the adapter of {name} is not trained in fp32"):
        invariants.check_targets(policy, LORA)


def test_a_target_without_an_adapter() -> None:
    policy = attach(make_model("llama"), LoraSection(r=4, target_modules=["q_proj", "v_proj"]), seed=0)
    with pytest.raises(TrainingError, match="no adapter was attached to k_proj, o_proj"):
        invariants.check_targets(policy, LORA)


def test_a_target_that_lacks_its_adapter_in_one_layer(policy: PeftModel) -> None:
    block = policy.get_base_model().model.layers[1]
    block.mlp.up_proj = block.mlp.up_proj.base_layer
    with pytest.raises(TrainingError, match="up_proj"):
        invariants.check_targets(policy, LORA)


def test_an_adapter_that_does_not_start_at_zero(policy: PeftModel) -> None:
    next(iter(lora_layers(policy).values())).lora_B["default"].weight.data += 0.1
    with pytest.raises(TrainingError, match="policy and reference differ before the first step"):
        check_equal(policy)
    assert "the starting adapter moves them" in check_equal(policy, fresh=False).detail


def test_log_probabilities_that_are_not_finite(policy: PeftModel) -> None:
    policy.get_base_model().model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"log-probabilities of rows \[0, 1, 2, 3\] are not finite"):
        check_equal(policy)


@pytest.mark.parametrize("loss", ["ipo", "hinge", "apo_zero", "aot"])
def test_other_losses_have_another_value_at_the_start(loss: str, policy: PeftModel) -> None:
    assert "ln 2" not in check_equal(policy, loss=LossSettings(loss_type=[loss])).detail


@pytest.mark.parametrize("part", ["embed_tokens", "lora_A", "norm"])
def test_a_weight_that_is_not_finite_is_named(part: str, policy: PeftModel) -> None:
    name, weight = next((n, p) for n, p in policy.named_parameters() if part in n)
    weight.data.view(-1)[3] = torch.inf
    with pytest.raises(TrainingError, match=f"{name} is not finite"):
        invariants.check_finite(policy)


@pytest.mark.parametrize("double_quant", [True, False])
def test_a_scale_of_a_4_bit_weight_that_is_not_finite(double_quant: bool, tiny: Tiny) -> None:
    base = load_base(ModelSection(name=str(tiny.model), double_quant=double_quant), find_device())
    policy = attach(base.model, LORA, seed=0)
    invariants.check_finite(policy)
    state = base.model.model.layers[1].mlp.down_proj.weight.quant_state
    (state.state2.absmax if double_quant else state.absmax)[0] = torch.nan
    with pytest.raises(TrainingError, match=r"layers\.1\.mlp\.down_proj.* is not finite"):
        invariants.check_finite(policy)


FAULTS = {
    "two BOS in the prompt": ([BOS, BOS, 5], [60, END], [61, END], "row 7 has 2 BOS"),
    "a BOS in the answer": ([BOS, 5], [60, END], [BOS, 61, END], "row 7 has 2 BOS tokens in prompt and rejected"),
    "no end of turn": ([BOS, 5], [60, 61], [61, END], "row 7 has 0 end-of-turn tokens in chosen"),
    "two ends of turn": ([BOS, 5], [60, END], [61, END, END], "row 7 has 2 end-of-turn tokens in rejected"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_sequence_with_the_wrong_special_tokens(fault: str) -> None:
    prompt, chosen, rejected, message = FAULTS[fault]
    with pytest.raises(TrainingError, match=message):
        invariants.check_sequences([*GOOD, TokenPair(7, prompt, chosen, rejected)], TEMPLATE, BOS, 100)


def test_where_every_turn_begins_with_bos_only_one_beside_the_turns_is_a_fault() -> None:
    template = Template("any", "test", frozenset({END}), bos_opens_turns=True)
    turns = TokenPair(7, [BOS, 5, END, BOS, 6], [60, END], [61, END])
    assert invariants.check_sequences([*GOOD, turns], template, BOS, 100)
    with pytest.raises(TrainingError, match="row 7 has 2 BOS"):
        invariants.check_sequences([turns], TEMPLATE, BOS, 100)
    for fault in ("two BOS in the prompt", "a BOS in the answer"):
        prompt, chosen, rejected, message = FAULTS[fault]
        with pytest.raises(TrainingError, match=message):
            invariants.check_sequences([TokenPair(7, prompt, chosen, rejected)], template, BOS, 100)


def test_a_completion_that_was_cut_needs_no_end_of_turn_and_is_counted() -> None:
    pairs = [TokenPair(7, [BOS, 5], [60, 61, 62], [61, END])]
    assert "1 cut before it" in invariants.check_sequences(pairs, TEMPLATE, BOS, 5).detail


def test_a_tokenizer_without_bos_and_a_template_without_end_are_legal() -> None:
    pairs = [TokenPair(7, [5, 5], [60], [61])]
    assert invariants.check_sequences(pairs, Template(None, "test", frozenset()), None, 100)


def test_the_template_of_these_tests_ends_turns_where_the_check_looks() -> None:
    assert load_template("auto", make_tokenizer()).end_of_turn == {END}


def test_a_packed_row_that_does_not_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    build = invariants.build_pack

    def wrong(pairs: Any, indices: Any) -> Any:
        pack = build(pairs, indices)
        pack.input_ids[0, 1] += 1
        return pack

    monkeypatch.setattr(invariants, "build_pack", wrong)
    with pytest.raises(TrainingError, match=r"pair 0 \(row 0\) does not read back as its chosen"):
        invariants.check_prefix(GOOD)


def test_an_adapter_that_stays_at_zero(policy: PeftModel) -> None:
    layers = list(lora_layers(policy).items())
    for _, layer in layers[1:]:
        layer.lora_B["default"].weight.data += 0.1
    with pytest.raises(TrainingError, match=rf"lora_B is still zero on 1 of 14 layers \(first: {layers[0][0]}\)"):
        invariants.check_adapter_learned(policy, 1)


def test_a_step_of_warmup_with_rate_0_proves_nothing(tiny: Tiny, tmp_path: Path) -> None:
    run = train_tiny(tiny, tmp_path / "run", "train.max_steps=4")
    assert next(line["learning_rate"] for line in run.metrics if "loss" in line) == 0
    learned = [check["detail"] for check in run.record["checks"] if check["name"] == "every adapter learns"]
    assert learned == ["lora_B is non-zero on 14 layers after step 2"]


class Dead(Callback):
    """One layer gets no gradient."""

    def on_update(self, recipe: Any) -> None:
        for name, parameter in recipe.policy.named_parameters():
            if "layers.1.mlp.up_proj.lora" in name:
                parameter.grad = None


def test_a_run_whose_layer_gets_no_gradient_stops(tiny: Tiny, tmp_path: Path) -> None:
    with with_callbacks(Dead()), pytest.raises(TrainingError, match=r"after step 2, lora_B is still zero on 1 of 14"):
        train_tiny(tiny, tmp_path / "run")


def test_a_run_whose_loss_is_not_finite_stops_and_names_the_rows(tiny: Tiny, tmp_path: Path) -> None:
    def spoil(trainer: Any) -> None:
        trainer.train_split.reference[:] = torch.nan

    said = r"step 1: the losses of 8 of 8 pairs are not finite \(rows \d"
    with with_callbacks(change=spoil), pytest.raises(TrainingError, match=said):
        train_tiny(tiny, tmp_path / "run")
    assert not (tmp_path / "run" / "adapter").exists()
