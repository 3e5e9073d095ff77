"""What of a base stays out of 4 bits is counted by kind, and refused where it is much."""

from pathlib import Path

import pytest
import torch
from engine.sweep import build
from training.tiny import Tiny

from qdpo.config.schema import ModelSection
from qdpo.errors import ConfigError
from qdpo.hardware import Device
from qdpo.model.coverage import NF4_BYTES, check_stored, stored
from qdpo.model.load import load_base

CPU = Device("cpu", "CPU", None, 1)


def test_experts_in_16_bits_are_refused_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build("qwen3_moe").bfloat16().save_pretrained(tmp_path)
    monkeypatch.setattr("qdpo.model.load.load_by_transformers", None)
    with pytest.raises(ConfigError, match=r"% of its bytes .* would not be in 4 bits: experts \(8 tensors") as caught:
        load_base(ModelSection(name=str(tmp_path)), CPU)
    assert "--set model.in_16_bits=[experts]" in str(caught.value.hint)


def test_what_may_stay_is_loaded(tmp_path: Path) -> None:
    build("qwen3_moe").bfloat16().save_pretrained(tmp_path)
    base = load_base(ModelSection(name=str(tmp_path), in_16_bits=["experts"]), CPU)
    assert stored(base.model).others["experts"].tensors == 8
    assert load_base(ModelSection(name=str(tmp_path), quantization="none"), CPU).model


def test_a_dense_base_has_nothing_but_vectors_beside_4_bits(tiny: Tiny) -> None:
    base = load_base(ModelSection(name=str(tiny.model), dtype="bfloat16"), CPU)
    found = check_stored(base.model, "tiny")
    assert not found.others
    linear = sum(m.in_features * m.out_features for n, m in base.model.named_modules() if n in set(base.quantized))
    assert found.in_4_bits.weights == linear
    assert found.in_4_bits.bytes == pytest.approx(NF4_BYTES * linear)
    assert found.vectors.bytes == 2 * sum(p.numel() for n, p in base.model.named_parameters() if "_proj" not in n)


def test_bytes_of_a_weight_are_those_that_bitsandbytes_takes() -> None:
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(torch.randn(4096, 4096), blocksize=64, compress_statistics=True, quant_type="nf4")
    scales = state.absmax.nbytes + state.state2.absmax.nbytes
    assert (packed.nbytes + scales) / 4096**2 == pytest.approx(NF4_BYTES, rel=1e-3)
