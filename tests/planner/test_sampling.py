"""What the samples of an evaluation are planned to cost, beside what decoding really takes."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from planner.grid import CPU, config_of
from transformers import LlamaConfig, LlamaForCausalLM

from qdpo.config.schema import RunConfig
from qdpo.engine.decoding import greedy
from qdpo.planner.cards import CARDS, LAUNCH_SECONDS, Card, this_machine
from qdpo.planner.estimate import answered
from qdpo.planner.find import Base, loaded
from qdpo.planner.meter import peak_bytes
from qdpo.planner.plays import plays_for
from qdpo.planner.settings import with_changes
from qdpo.planner.shapes import MISTRAL_7B
from qdpo.planner.timing import answers_work
from qdpo.planner.watch import FUSED_ROWS

A40 = CARDS["a40"]
SLOW_MEMORY = replace(A40, tflops=1e9, bandwidth=A40.bandwidth / 100)
"""Only what is moved counts on it."""
PROMPT = 64


def config(rows: int = 3, new: int = 64) -> RunConfig:
    found = with_changes(config_of(16, None), "samples", count=rows, max_new_tokens=new)
    return with_changes(found, "model", quantization="nf4", dtype="bfloat16")


def seconds(card: Card = A40, base: dict[str, Any] = MISTRAL_7B, **changes: int) -> float:
    """Of a 7B base with an adapter of rank 16."""
    found = config(**changes)
    return answers_work(plays_for(Base("base", base, "known"), found, card), found, card, PROMPT).seconds


def test_a_token_reads_the_stored_weights_and_not_the_dequantized_ones() -> None:
    """Of a 7B base: 3.6 GB of linear layers and 0.26 GB of head, where dequantizing moves 32 GB."""
    moved = (seconds(SLOW_MEMORY, new=65) - seconds(SLOW_MEMORY, new=1)) / 64 * SLOW_MEMORY.copied
    assert moved == pytest.approx(4.4e9, rel=0.4)
    many = FUSED_ROWS + 1
    dequantized = (seconds(SLOW_MEMORY, rows=many, new=65) - seconds(SLOW_MEMORY, rows=many, new=1)) / 64
    assert dequantized * SLOW_MEMORY.copied == pytest.approx(32e9, rel=0.2)


def test_launches_bound_a_card() -> None:
    fast = replace(A40, tflops=1e9, bandwidth=1e18)
    assert seconds(fast) == pytest.approx(64 * 32 * LAUNCH_SECONDS)


def test_time_grows_with_tokens_and_hardly_with_prompts() -> None:
    assert seconds(new=128) == pytest.approx(2 * seconds(new=64), rel=0.05)
    assert seconds(rows=1) <= seconds(rows=3) < 1.3 * seconds(rows=1)
    none = config(rows=0)
    plays = plays_for(Base("base", MISTRAL_7B, "known"), none, A40)
    assert (answers_work(plays, none, A40, PROMPT).seconds, list(answered(plays, none, PROMPT))) == (0.0, [])


def cache_of(base: dict[str, Any], prompt: int, new: int) -> float:
    found = with_changes(config(new=new), "packing", tokens_without_grad=1 << 16)
    plays = plays_for(Base("base", base, "known"), found, A40)
    return max(sum(kinds.values()) for _, kinds in answered(plays, found, prompt))


def test_the_cache_of_the_last_token_counts() -> None:
    each = 2 * 8 * 128 * 2  # keys and values, heads, their width, bytes
    endless = {**MISTRAL_7B, "sliding_window": None}
    # where many tokens are written the cache is the peak: every other token of 3 prompts adds to it
    grows = (cache_of(endless, 16, 8000) - cache_of(endless, 16, 6000)) / 2000
    # and in the layer at hand keys and values are there once more for each of the four queries that share one
    assert grows == pytest.approx((32 + 4) * 3 * each, rel=0.02)
    # beyond a window the plan is an upper bound
    assert cache_of(MISTRAL_7B, 16, 8000) <= cache_of(endless, 16, 8000)


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
    found = with_changes(config_of(16, None), "samples", count=3, max_new_tokens=new)
    found = with_changes(found, "model", quantization="none", dtype=str(dtype).removeprefix("torch."))
    plays = plays_for(loaded("toy", model), found, this_machine())
    estimated = max(sum(kinds.values()) for _, kinds in answered(plays, found, prompt))
    print(f"measured {measured:,}, estimated {estimated:,}, {estimated / measured - 1:+.1%}")
    assert estimated == pytest.approx(measured, rel=0.10)
