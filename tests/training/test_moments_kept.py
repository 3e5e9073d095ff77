"""What a run keeps for its exports when it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from training.tiny import Tiny, make_model, make_tokenizer, train_tiny
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from qdpo.errors import UnavailableError
from qdpo.export import moments
from qdpo.model.moments import MOMENTS, Moments
from qdpo.training.stages import moments as stage

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


def test_a_run_keeps_moments_of_a_share_of_what_it_was_trained_on(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage, "FEWEST", 16)
    run = train_tiny(tiny, tmp_path / "run")
    kept = Moments(tmp_path / "run" / MOMENTS)
    assert kept.about.adapter_sha256 == run.record["result"]["adapter_sha256"]
    share = run.record["result"]["tokens"] // stage.SHARE
    assert share // 2 <= kept.about.tokens <= share + 64, "every plain text has two tokens at the least"
    assert "exports keep what was trained" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    "error",
    [UnavailableError("no row of layers"), RuntimeError("out of memory, DefaultCPUAllocator: can't allocate memory")],
)
def test_a_run_is_finished_though_they_cannot_be_taken(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fails(*args: object) -> None:
        raise error

    monkeypatch.setattr(moments, "take_moments", fails)
    run = train_tiny(tiny, tmp_path / "run")
    assert run.record["state"] == "finished"
    assert "no moments of the layers' inputs are kept" in capsys.readouterr().err.replace("\n", " ")


def test_a_head_that_is_the_embedding_has_no_tensor_of_its_own(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "FEWEST", 16)
    shape = make_model("llama").config.to_dict() | {"tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(tmp_path / "tied")
    make_tokenizer().save_pretrained(tmp_path / "tied")
    train_tiny(tiny, tmp_path / "run", f"model.name={tmp_path / 'tied'}", "train.max_steps=2")
    assert Moments(tmp_path / "run" / MOMENTS).names


def test_a_base_whose_file_names_its_experts_one_by_one_has_no_moments(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = make_model("llama").config.to_dict() | MOE
    shape.pop("model_type")
    settings = AutoConfig.for_model("qwen3_moe", **shape)
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path / "moe")
    make_tokenizer().save_pretrained(tmp_path / "moe")
    held = (
        "model.quantization=none",
        "lora.target_modules=all-linear",
        "lora.leave_out=[experts]",
        "train.max_steps=1",
    )
    run = train_tiny(tiny, tmp_path / "run", f"model.name={tmp_path / 'moe'}", *held)
    assert run.record["state"] == "finished"
    said = capsys.readouterr().err.replace("\n", " ")
    assert "the base's file has no tensor model.layers.0.mlp.experts.gate_up_proj and 3 others" in said
