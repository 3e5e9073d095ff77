"""The adapter alone as GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from export import families, toys, toys_gguf
from safetensors.torch import load_file

from qdpo.errors import InputMissingError, UsageError
from qdpo.export.folder import write_safetensors
from qdpo.export.formats import Request
from qdpo.export.gguf.families import uninterleave
from qdpo.export.gguf.lora import write_gguf_lora
from qdpo.export.source import load_run


def export(run: Path, *quants: str) -> Path:
    return next(write_gguf_lora(Request(load_run(run), run / "export" / "gguf-lora", quants=quants)).glob("*.gguf"))


@pytest.mark.parametrize("quant", ["f32", "f16"])
@pytest.mark.parametrize(
    "lora", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"up_proj": 3}}]
)
def test_base_plus_adapter_is_the_merged_model(tmp_path: Path, lora: dict[str, Any], quant: str) -> None:
    """Adding alpha / rank * B A, as llama.cpp does, gives the merged weights."""
    run = toys_gguf.make_run(tmp_path, families.config("llama"), **lora)
    merged = load_file(write_safetensors(Request(load_run(run), tmp_path / "m", "original")) / "model.safetensors")
    base = load_file(tmp_path / "base" / "model.safetensors")
    path = export(run, quant)
    fields, tensors = toys_gguf.fields(path), toys_gguf.tensors(path)
    assert fields["general.type"] == "adapter"
    assert fields["general.base_model.0.name"] == "Base"
    assert fields["general.architecture"] == "llama"
    assert fields["adapter.type"] == "lora"
    assert len(tensors) == 2 * 7 * 3
    for ours, theirs, heads in (
        ("attn_q", "self_attn.q_proj", 4),
        ("attn_k", "self_attn.k_proj", 2),
        ("ffn_up", "mlp.up_proj", 0),
    ):
        a, b = (tensors[f"blk.1.{ours}.weight.lora_{side}"] for side in "ab")
        delta = fields["adapter.lora.alpha"] / a.shape[0] * (b @ a)
        if heads:
            delta = uninterleave(delta, heads)
        name = f"model.layers.1.{theirs}.weight"
        change = merged[name] - base[name]
        assert change.abs().max() > 0.005
        assert torch.allclose(delta, change, atol=1e-6 if quant == "f32" else 1e-4)


@pytest.mark.parametrize(
    ("lora", "named"),
    [
        ({"use_dora": True}, "more than LoRA"),
        ({"modules_to_save": ["lm_head"]}, "more than LoRA"),
        ({"target_modules": ["lm_head", "q_proj"]}, "more than LoRA"),
    ],
)
def test_what_an_adapter_file_cannot_hold_is_refused(tmp_path: Path, lora: dict[str, Any], named: str) -> None:
    run = toys_gguf.make_run(tmp_path, families.config("llama"), **lora)
    with pytest.raises(InputMissingError, match=named):
        export(run)


def test_types(tmp_path: Path) -> None:
    run = toys.save_run(
        tmp_path / "run", base := toys.save_base(tmp_path / "b", toys.llama()), toys.add_adapter(toys.load_plain(base))
    )
    with pytest.raises(UsageError, match=r"f32 \(default\) or f16"):
        export(run, "q4_k_m")
