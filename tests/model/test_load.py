"""Loading the base: really in 4 bits, and a reason for everything that cannot be loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import nn
from training.tiny import Tiny

from qdpo.config.schema import ModelSection
from qdpo.errors import ConfigError, DataError
from qdpo.hardware import Device
from qdpo.model.load import (
    Base,
    keep_weights_unpacked,
    load_base,
    load_tokenizer,
    quantized_layers,
    read_config,
    read_license,
)
from qdpo.model.source import find
from qdpo.model.weights import weights_sha256

CPU = Device("cpu", "CPU", None, 1)
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def base(tiny: Tiny) -> Base:
    """The tiny model in NF4; not to be changed."""
    return load_base(ModelSection(name=str(tiny.model)), CPU)


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    shutil.copytree(tiny.model, tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path) -> Base:
    """Load from a folder, as configured by default."""
    return load_base(ModelSection(name=str(folder)), CPU)


def test_every_projection_is_a_bitsandbytes_nf4_layer(base: Base) -> None:
    expected = {name for name, m in base.model.named_modules() if name.endswith(PROJECTIONS)}
    assert len(expected) == 14
    assert set(base.quantized) == expected
    for name in expected:
        layer = base.model.get_submodule(name)
        assert isinstance(layer, Linear4bit)
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.quant_state.quant_type == "nf4"
        assert layer.weight.quant_state.nested


def test_head_and_embeddings_keep_their_numbers(base: Base, tiny: Tiny) -> None:
    plain = load_base(ModelSection(name=str(tiny.model), quantization="none"), CPU)
    assert plain.quantized == []
    for kept, original in (
        (base.model.get_output_embeddings(), plain.model.get_output_embeddings()),
        (base.model.get_input_embeddings(), plain.model.get_input_embeddings()),
    ):
        assert not isinstance(kept, Linear4bit)
        assert kept.weight.dtype == torch.float32
        assert torch.equal(kept.weight, original.weight)
    quantized, original = (b.model.get_submodule("model.layers.0.mlp.up_proj") for b in (base, plain))
    assert quantized.weight.numel() * 2 == original.weight.numel()


def test_nothing_is_trainable(base: Base) -> None:
    assert not [name for name, p in base.model.named_parameters() if p.requires_grad]
    assert base.model.config.use_cache is False


def test_the_compute_type_is_the_configured_one(tiny: Tiny) -> None:
    loaded = load_base(ModelSection(name=str(tiny.model), dtype="bfloat16", double_quant=False), CPU)
    assert (loaded.dtype, loaded.dtype_reason) == (torch.bfloat16, "set by model.dtype")
    layer = loaded.model.get_submodule(loaded.quantized[0])
    assert isinstance(layer, Linear4bit)
    assert layer.compute_dtype == torch.bfloat16
    assert not layer.weight.quant_state.nested


def test_repacking_is_off_on_every_module_that_has_it(base: Base) -> None:
    having = [m for m in base.model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    assert not [m for m in having if m.support_avx512bf16_for_cpu]

    class Repacks(nn.Linear):
        support_avx512bf16_for_cpu = True

    model = nn.Sequential(Repacks(2, 2), nn.Sequential(Repacks(2, 2)), nn.Linear(2, 2))
    keep_weights_unpacked(model)
    assert [getattr(m, "support_avx512bf16_for_cpu", None) for m in (model[0], model[1][0], model[2])] == [
        False,
        False,
        None,
    ]


def test_passes_without_gradients_leave_the_weights_alone(base: Base) -> None:
    before = {name: p.detach().clone() for name, p in base.model.named_parameters()}
    ids = torch.arange(8)[None]
    with torch.no_grad():
        first, second = base.model(ids).logits, base.model(ids).logits
    assert torch.equal(first, second)
    for name, parameter in base.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_quantized_layers_finds_only_4_bit_ones() -> None:
    model = nn.ModuleDict({"a": Linear4bit(64, 64), "b": nn.Linear(64, 64)})
    assert quantized_layers(model) == ["a"]


def test_a_model_that_is_quantized_already_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(ConfigError, match="is quantized already") as caught:
        load(folder)
    assert caught.value.hint is not None
    assert "16-bit" in caught.value.hint


def test_broken_weights_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"the weights of .* are broken") as caught:
        load(folder)
    assert str(folder) in caught.value.message
    assert "\n" not in caught.value.message


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="has no safetensors weights"):
        load(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="has no safetensors weights"):
        load(folder)


def test_an_unknown_architecture_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(DataError, match="cannot be loaded"):
        load(folder)


@pytest.mark.parametrize(
    ("content", "reason"), [("{", "cannot be read"), ("[]", "holds list, expected an object"), ("\x80", "cannot be")]
)
def test_a_broken_config_is_refused(content: str, reason: str, folder: Path) -> None:
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=reason):
        read_config(find(str(folder)))
    with pytest.raises(DataError, match=reason):
        load(folder)


def test_a_broken_tokenizer_is_refused(folder: Path) -> None:
    assert load_tokenizer(ModelSection(name=str(folder))).eos_token == "</s>"
    (folder / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(DataError, match="the tokenizer of"):
        load_tokenizer(ModelSection(name=str(folder)))


def test_the_digest_depends_on_every_byte(folder: Path, tiny: Tiny) -> None:
    assert weights_sha256(find(str(folder))) == weights_sha256(find(str(tiny.model)))
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert weights_sha256(find(str(folder))) != weights_sha256(find(str(tiny.model)))


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: mit\ntags: [a]\n---\n# Model\n", "mit"),
        ("---\ntags: [a]\n---\n", None),
        ("---\nlicense: [mit, apache-2.0]\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("---\nlicense: {\n---\n", None),
        ("---\n- license\n---\n", None),
        ("# Model\n\nlicense: mit\n", None),
    ],
)
def test_the_licence_is_read_from_the_front_matter(card: str, expected: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card)
    assert read_license(tmp_path) == expected


def test_no_card_no_licence(tmp_path: Path) -> None:
    assert read_license(tmp_path) is None
