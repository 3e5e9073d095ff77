"""What the samples of an evaluation are planned to cost, beside what decoding really takes."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from planner.grid import CPU
from transformers import LlamaConfig, LlamaForCausalLM

from qdpo.planner.meter import peak_bytes
from qdpo.planner.sampling import FUSED_ROWS, Answering, answering
from qdpo.planner.shapes import MISTRAL_7B, shape_of
from qdpo.training.samples import greedy

A40: dict[str, Any] = {"cpu": False, "flops": 149.7e12 * 0.68, "bandwidth": 696e9 * 0.8, "launch": 0.8e-3}
LORA = MISTRAL_7B.lora(16, list(MISTRAL_7B.projections))


def seven_b(**changes: Any) -> Answering:
    settings: dict[str, Any] = {"rows": 3, "prompt": 64, "new": 64, "b": 2, "adapter": LORA, "quantized": True, **A40}
    return answering(MISTRAL_7B, **settings | changes)


def test_a_token_reads_the_stored_weights_and_not_the_dequantized_ones() -> None:
    """Of a 7B base: 3.6 GB of linear layers and 0.26 GB of head, where dequantizing moved 32 GB."""
    fast: dict[str, Any] = {"launch": 0.0, "flops": 1e18}
    moved = (seven_b(new=65, **fast).seconds - seven_b(new=1, **fast).seconds) / 64 * A40["bandwidth"]
    assert moved == pytest.approx(4.4e9, rel=0.1)
    many = {**fast, "rows": FUSED_ROWS + 1}
    dequantized = (seven_b(new=65, **many).seconds - seven_b(new=1, **many).seconds) / 64 * A40["bandwidth"]
    assert dequantized == pytest.approx(32e9, rel=0.1)


def test_launches_bound_a_card_and_not_a_cpu() -> None:
    assert seven_b(launch=1.0).seconds == pytest.approx(64 * 32)
    slow = {"cpu": True, "flops": 0.08e12 * 0.4, "bandwidth": 10e9, "b": 4}
    # dequantizing 7 billion weights takes one core 17 seconds a token, see CPU_DEQUANTIZING
    assert seven_b(**slow, launch=1.0).seconds == pytest.approx(seven_b(**slow).seconds)
    assert seven_b(**slow).seconds / 64 == pytest.approx(21, rel=0.2)


def test_time_grows_with_tokens_and_hardly_with_prompts() -> None:
    assert seven_b(new=128).seconds == pytest.approx(2 * seven_b(new=64).seconds, rel=0.05)
    assert seven_b(rows=1).seconds <= seven_b(rows=3).seconds < 1.3 * seven_b(rows=1).seconds
    assert seven_b(rows=0) == Answering(0.0, 0.0, 0.0)


def test_keys_and_values_of_a_window_are_no_longer_than_the_window() -> None:
    each = 2 * 8 * 128 * 2  # keys and values, heads, their width, bytes
    assert seven_b(prompt=100, new=28).cache == 32 * 3 * 128 * each
    assert seven_b(prompt=8000, new=64).cache == 32 * 3 * 4096 * each
    assert answering(
        replace(MISTRAL_7B, window=None),
        **{"rows": 3, "prompt": 8000, "new": 64, "b": 2, "adapter": 0, "quantized": True, **A40},
    ).cache == pytest.approx(32 * 3 * 8064 * each)


def test_bitsandbytes_still_reads_so_many_rows_as_they_are_stored() -> None:
    spec = importlib.util.find_spec("bitsandbytes")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "backends" / "cuda" / "ops.py").read_text()
    rows = re.search(r"^_GEMM_4BIT_CUSTOM_FLOOR_M = (\d+)$", source, re.MULTILINE)
    assert rows is not None
    assert int(rows[1]) == FUSED_ROWS
    assert "if M <= _GEMM_4BIT_CUSTOM_FLOOR_M:\n        return True" in source


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("prompt", "new"), [(192, 4), (16, 64)], ids=["long prompts", "long answers"])
def test_the_peak_is_that_of_decoding(prompt: int, new: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=2000,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(dtype).eval()
    prompts = [list(range(5, 5 + prompt - shorter)) for shorter in (0, 3, 9)]
    greedy(model, prompts, frozenset(), 2)
    measured = peak_bytes(lambda: greedy(model, prompts, frozenset(), new), CPU)
    found = answering(
        shape_of(config.to_dict(), "toy"),
        **{"rows": 3, "prompt": prompt, "new": new, "b": dtype.itemsize, "adapter": 0, "quantized": False, **A40},
    )
    print(f"measured {measured:,}, estimated {found.peak:,.0f}, {found.peak / measured - 1:+.1%}")
    assert found.peak == pytest.approx(measured, rel=0.10)
