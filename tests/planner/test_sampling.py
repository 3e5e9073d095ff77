"""What the samples of an evaluation are planned to cost, beside what decoding really takes."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planner.grid import CPU, config_of
from transformers import LlamaConfig, LlamaForCausalLM

from qdpo.config.schema import RunConfig
from qdpo.planner.cards import CARDS, LAUNCH_SECONDS, this_machine
from qdpo.planner.meter import peak_bytes
from qdpo.planner.sampling import FUSED_ROWS, answers_peak, answers_seconds, cache_bytes
from qdpo.planner.settings import with_changes
from qdpo.planner.shapes import MISTRAL_7B, shape_of
from qdpo.engine.decoding import greedy

A40 = CARDS["a40"]
SLOW_MEMORY = replace(A40, tflops=1e9, bandwidth=A40.bandwidth / 100)
"""Only what is moved counts on it."""
ONE_CORE = replace(this_machine(), tflops=0.08, bandwidth=10e9)


def config(rows: int = 3, prompt: int = 64, new: int = 64, quantization: str = "nf4") -> RunConfig:
    found = with_changes(config_of(16, None), "samples", count=rows, max_new_tokens=new)
    found = with_changes(found, "model", quantization=quantization)
    return with_changes(found, "data", max_prompt_length=prompt)


def seconds(card=A40, b=2, **changes) -> float:
    """Of a 7B base with an adapter of rank 16."""
    return answers_seconds(MISTRAL_7B, config(**changes), card, b, adapter=True)


def test_a_token_reads_the_stored_weights_and_not_the_dequantized_ones() -> None:
    """Of a 7B base: 3.6 GB of linear layers and 0.26 GB of head, where dequantizing moved 32 GB."""
    moved = (seconds(SLOW_MEMORY, new=65) - seconds(SLOW_MEMORY, new=1)) / 64 * SLOW_MEMORY.copied
    assert moved == pytest.approx(4.4e9, rel=0.1)
    many = FUSED_ROWS + 1
    dequantized = (seconds(SLOW_MEMORY, rows=many, new=65) - seconds(SLOW_MEMORY, rows=many, new=1)) / 64
    assert dequantized * SLOW_MEMORY.copied == pytest.approx(32e9, rel=0.1)


def test_launches_bound_a_card_and_not_a_cpu() -> None:
    fast = {"tflops": 1e9, "bandwidth": 1e18}
    assert seconds(replace(A40, **fast)) == pytest.approx(64 * 32 * LAUNCH_SECONDS)
    assert seconds(replace(ONE_CORE, **fast), b=4) < LAUNCH_SECONDS
    # dequantizing 7 billion weights takes one core 17 seconds a token, see CPU_DEQUANTIZING
    assert seconds(ONE_CORE, b=4) / 64 == pytest.approx(21, rel=0.2)


def test_time_grows_with_tokens_and_hardly_with_prompts() -> None:
    assert seconds(new=128) == pytest.approx(2 * seconds(new=64), rel=0.05)
    assert seconds(rows=1) <= seconds(rows=3) < 1.3 * seconds(rows=1)
    assert (seconds(rows=0), answers_peak(MISTRAL_7B, config(rows=0), 2)) == (0.0, 0.0)


def test_keys_and_values_of_a_window_are_no_longer_than_the_window() -> None:
    each = 2 * 8 * 128 * 2  # keys and values, heads, their width, bytes
    assert cache_bytes(MISTRAL_7B, config(), 2, 128) == 32 * 3 * 128 * each
    assert cache_bytes(MISTRAL_7B, config(), 2, 8064) == 32 * 3 * 4096 * each
    assert cache_bytes(replace(MISTRAL_7B, window=None), config(), 2, 8064) == 32 * 3 * 8064 * each
    grows = answers_peak(MISTRAL_7B, config(new=28), 2) - answers_peak(MISTRAL_7B, config(new=27), 2)
    assert grows == 32 * 3 * each


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
    small = LlamaConfig(
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=2000,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(small).to(dtype).eval()
    prompts = [list(range(5, 5 + prompt - shorter)) for shorter in (0, 3, 9)]
    greedy(model, prompts, frozenset(), 2)
    measured = peak_bytes(lambda: greedy(model, prompts, frozenset(), new), CPU)
    shape = shape_of(small.to_dict(), "toy")
    found = answers_peak(shape, config(3, prompt, new, quantization="none"), dtype.itemsize)
    print(f"measured {measured:,}, estimated {found:,.0f}, {found / measured - 1:+.1%}")
    assert found == pytest.approx(measured, rel=0.10)
