"""Parameters, adapter, GGUF sizes and steps against what was published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from qdpo.config import presets
from qdpo.config.resolve import resolve
from qdpo.config.schema import PROJECTIONS
from qdpo.errors import UnavailableError
from qdpo.export.gguf.sizes import gguf_bytes
from qdpo.planner.data import lengths_for
from qdpo.planner.find import find_base
from qdpo.planner.optimizer import optimizer_bytes
from qdpo.planner.parts import weight_parts
from qdpo.planner.shapes import GEMMA_7B, KINDS, MISTRAL_7B, SHIPPED, shape_of


def test_published_parameter_counts() -> None:
    assert MISTRAL_7B.parameters == 7_241_732_096
    assert GEMMA_7B.parameters == 8_537_680_896
    assert MISTRAL_7B.lora(16, list(PROJECTIONS)) == 2_621_440 * 16
    assert GEMMA_7B.lora(1, list(PROJECTIONS)) == 3_125_248


# Files on the hub of Mistral-7B's shape; Q2_K, Q3_K_M and IQ4_NL, which qdpo does not write, are not estimated.
@pytest.mark.parametrize(
    ("kind", "published"), [("q4_k_m", 4.37), ("q5_k_m", 5.13), ("q6_k", 5.94), ("q8_0", 7.70), ("q4_0", 4.11)]
)
def test_published_gguf_sizes(kind: str, published: float) -> None:
    assert gguf_bytes(MISTRAL_7B, kind) / 1e9 == pytest.approx(published, rel=0.02)


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
        assert find_base(config.model.name, config.model.revision).shape.parameters > 0


def test_nf4_weights_of_mistral() -> None:
    nested = weight_parts(MISTRAL_7B, "nf4", True, 2)
    plain = weight_parts(MISTRAL_7B, "nf4", False, 2)
    assert sum(nested.values()) == pytest.approx(4.13e9, rel=0.002)
    # 0.5 + 4/64 bytes a weight without double quantization
    assert sum(plain.values()) - 2 * MISTRAL_7B.unquantized == pytest.approx(0.5625 * MISTRAL_7B.linear, rel=1e-4)


def test_both_adam_states_of_rank_16() -> None:
    assert optimizer_bytes("paged_adamw_32bit", MISTRAL_7B.lora(16, list(PROJECTIONS))) == pytest.approx(
        0.335e9, rel=0.01
    )
    assert optimizer_bytes("adamw_8bit", 1000) < 0.26 * optimizer_bytes("adamw_torch", 1000)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_has_as_many_parameters_as_transformers_builds(kind: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = AutoConfig.for_model(kind, **sizes, num_key_value_heads=2, head_dim=32, vocab_size=500)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape_of(config.to_dict(), kind).parameters == sum(p.numel() for p in model.parameters())


def test_what_the_planner_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="does not know models of type mamba"):
        shape_of({"model_type": "mamba"}, "x")
    config = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    with pytest.raises(UnavailableError, match="lacks what a plan needs"):
        shape_of(config, "x")
    import numpy as np

    (tmp_path / "config.json").write_text(json.dumps({**config, "num_attention_heads": 1, "vocab_size": 10}))
    save_file({"a": np.zeros((100, 100), np.float16)}, tmp_path / "model.safetensors")
    with pytest.raises(UnavailableError, match="has 10,000 weights"):
        find_base(str(tmp_path))
