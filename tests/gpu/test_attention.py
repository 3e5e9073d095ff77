"""The variable-length kernel beside torch's SDPA for each segment: the same numbers, and which is faster."""

from __future__ import annotations

import pytest
import torch
from gpu import needs
from gpu.results import Results

from qdpo.engine import varlen
from qdpo.engine.attention import packed_attention

pytestmark = [
    needs.CUDA,
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0),
        reason="FlashAttention needs compute capability 8.0",
    ),
]

HEADS = {"mistral-7b": (32, 8, 128), "gemma-7b": (16, 16, 256)}
ROUNDING = {torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("heads", HEADS)
def test_it_is_exact(
    heads: str, dtype: torch.dtype, window: int | None, device: torch.device, results: Results
) -> None:
    count, shared, width = HEADS[heads]
    pack = varlen.TRIAL.to(device)
    exact = [torch.randn(1, n, pack.n_tokens, width, device=device) for n in (count, shared, shared)]
    exact = [tensor.to(dtype).float().requires_grad_() for tensor in exact]
    half = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
    assert varlen.fits(*half)
    module, upstream = torch.nn.Module(), torch.randn(1, pack.n_tokens, count, width, device=device)
    wanted, _ = packed_attention(module, *exact, None, sliding_window=window, qdpo_pack=pack)
    wanted.backward(upstream)
    found, _ = varlen.varlen_attention(module, *half, None, sliding_window=window, qdpo_pack=pack)
    found.backward(upstream.to(dtype))
    pairs = [(found, wanted), *((mine.grad, theirs.grad) for mine, theirs in zip(half, exact, strict=True))]
    gaps = [float((mine.float() - theirs).norm() / theirs.norm()) for mine, theirs in pairs]
    results.add(f"varlen attention, {heads}, {dtype}, window {window}", dict(zip("oqkv", gaps, strict=True)))
    assert max(gaps) < ROUNDING[dtype]


@pytest.mark.parametrize("heads", HEADS)
def test_how_long_it_takes(heads: str, device: torch.device, results: Results) -> None:
    count, shared, width = HEADS[heads]
    rows = varlen.TRIAL.n_tokens
    tensors = [
        torch.randn(1, n, rows, width, device=device, dtype=torch.bfloat16, requires_grad=True)
        for n in (count, shared, shared)
    ]
    times = varlen.seconds(*tensors)
    results.add(f"attention of {rows} tokens, {heads}, forward and backward, seconds", times)
    assert all(value > 0 for value in times.values())
