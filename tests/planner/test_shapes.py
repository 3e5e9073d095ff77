"""Parameters, adapter, GGUF sizes and steps against what was published."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from qdpo.config import presets
from qdpo.config.resolve import resolve
from qdpo.config.schema import PROJECTIONS
from qdpo.errors import UnavailableError
from qdpo.export.gguf.sizes import gguf_bytes
from qdpo.planner import plays
from qdpo.planner.cards import CARDS
from qdpo.planner.data import lengths_for
from qdpo.planner.find import Base, find_base
from qdpo.planner.optimizer import optimizer_bytes
from qdpo.planner.plays import Model, plays_for
from qdpo.planner.shapes import GEMMA_7B, MISTRAL_7B, SHIPPED, Shape

A40 = CARDS["a40"]


def model_of(base: dict[str, Any], *settings: str) -> Model:
    return plays_for(Base("base", base, "made up"), resolve("garrulus-a40", list(settings)).config, A40).model


def shape_of(base: dict[str, Any]) -> Shape:
    return model_of(base).shape


def test_published_parameter_counts() -> None:
    mistral, gemma = shape_of(MISTRAL_7B), shape_of(GEMMA_7B)
    assert mistral.parameters == 7_241_732_096
    assert gemma.parameters == 8_537_680_896
    assert mistral.lora(16, list(PROJECTIONS)) == 2_621_440 * 16
    assert gemma.lora(1, list(PROJECTIONS)) == 3_125_248


# Files on the hub of Mistral-7B's shape.
@pytest.mark.parametrize(
    ("kind", "published"),
    [
        *[("q4_k_m", 4.37), ("q5_k_m", 5.13), ("q6_k", 5.94), ("q8_0", 7.70), ("q4_0", 4.11)],
        *[("q3_k_s", 3.16), ("q3_k_m", 3.52), ("q3_k_l", 3.82)],
    ],
)
def test_published_gguf_sizes(kind: str, published: float) -> None:
    assert gguf_bytes(shape_of(MISTRAL_7B), kind) / 1e9 == pytest.approx(published, rel=0.02)


# Of the recipes' own arithmetic: rows of the published runs in steps of the published size.
@pytest.mark.parametrize(
    ("preset", "steps"),
    [
        ("zephyr-7b-alpha", 1936),
        ("juanako-7b-v1", 322),
        ("zephyr-7b-gemma", 104),
        ("garrulus-a40", 200),
        ("garrulus-t4", 200),
        ("neuralhermes-7b", 200),
    ],
)
def test_published_step_counts(preset: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdpo.planner.data.at_hand", lambda config: False)
    config = resolve(preset).config
    assert lengths_for(config).steps(config) == steps


def test_every_shipped_preset_has_a_known_base_and_data() -> None:
    for name in presets.names():
        config = resolve(name).config
        assert config.model.name == "quickstart" or config.model.name in SHIPPED
        assert find_base(config.model.name, config.model.revision).config["num_hidden_layers"] > 0


def test_nf4_weights_of_mistral() -> None:
    nested, plain = (
        sum(size for name, size in model.static.items() if not name.startswith("LoRA"))
        for model in (model_of(MISTRAL_7B), model_of(MISTRAL_7B, "model.double_quant=false"))
    )
    assert nested == pytest.approx(4.13e9, rel=0.002)
    # 0.5 + 4/64 bytes a weight without double quantization
    shape = shape_of(MISTRAL_7B)
    assert plain - 2 * shape.unquantized == pytest.approx(0.5625 * shape.linear, rel=1e-4)


def test_both_adam_states_of_rank_16() -> None:
    trained = shape_of(MISTRAL_7B).lora(16, list(PROJECTIONS))
    assert optimizer_bytes("paged_adamw_32bit", trained) == pytest.approx(0.335e9, rel=0.01)
    assert optimizer_bytes("adamw_8bit", 1000) < 0.26 * optimizer_bytes("adamw_torch", 1000)


SMALL = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 32, "vocab_size": 500, "pad_token_id": 3}
KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "granite", "smollm3", "phi3")


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_knows_every_decoder_that_transformers_builds(kind: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    base = {"model_type": kind, **SMALL}
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(AutoConfig.for_model(**base))
    fused = ("lora.target_modules=[qkv_proj,o_proj,gate_up_proj,down_proj]",) if kind == "phi3" else ()
    model = model_of(base, *fused)
    assert model.shape.parameters == sum(p.numel() for p in built.parameters())
    assert model.shape.layers == 3


def test_what_cannot_be_played_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"transformers cannot build .* \(model_type 'nothing'\)"):
        shape_of({"model_type": "nothing"})
    import numpy as np

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SMALL}))
    save_file({"a": np.zeros((100, 100), np.float16)}, tmp_path / "model.safetensors")
    config = resolve("garrulus-a40", [f"model.name={tmp_path}"]).config
    with pytest.raises(UnavailableError, match="has 10,000 weights"):
        plays_for(find_base(str(tmp_path)), config, A40).model  # noqa: B018 - it is made when it is asked for


def test_a_plan_that_was_made_once_needs_no_torch() -> None:
    program = "import sys; from qdpo.cli.main import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    command = [sys.executable, "-c", program, "plan", "--preset", "quickstart", "--gpu", "t4"]
    said = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert said[0].splitlines()[:-1] == said[1].splitlines()[:-1]
    assert [text.splitlines()[-1] for text in said] == ["0 True", "0 False"]


def test_a_play_is_made_again_when_the_engine_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(plays, "_here", {})
    for code in ("as it is", "as it is", "another"):
        monkeypatch.setattr(plays, "_code", lambda code=code: code)
        monkeypatch.setattr(plays, "_here", {})
        base = Base("base", {"model_type": "llama", **SMALL}, "made up")
        found = plays.Plays(base, resolve("garrulus-a40").config, A40)
        monkeypatch.setattr(found, "_play", partial(_counted, found, made))
        assert found.model.shape.layers == 3
    assert made == ["as it is", "another"]


def _counted(found: plays.Plays, made: list[str], what: list[Any], make: Any) -> Any:
    def counted() -> Any:
        made.append(plays._code())
        return make()

    return type(found)._play(found, what, counted)
