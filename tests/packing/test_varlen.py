"""The variable-length layout, with a plain kernel of the same contract in place of FlashAttention, which needs CUDA.

tests/gpu runs the real one.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from packing.test_attention import gradients
from packing.toys import ARCHITECTURES, build, in_float64, make_pairs, separate_logps, trainable
from torch import Tensor

from qdpo.packing import attention, varlen
from qdpo.packing.layout import build_pack
from qdpo.packing.logps import score_pack
from qdpo.packing.probe import decide

CPU = torch.device("cpu")


def plain_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    longest_query: int,
    longest_key: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What torch's documentation says of `varlen_attn`, sequence by sequence; causal from the lower right."""
    assert query_ends.dtype == key_ends.dtype == torch.int32
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert window_size[1] == 0
    outputs = []
    for (a, b), (c, d) in zip(pairwise(query_ends.tolist()), pairwise(key_ends.tolist()), strict=True):
        assert b - a <= longest_query
        assert d - c <= longest_key
        q, k, v = query[a:b], key[c:d], value[c:d]
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        distance = torch.arange(d - c - (b - a), d - c)[:, None] - torch.arange(d - c)[None]
        seen = distance >= 0
        if window_size[0] >= 0:
            seen &= distance <= window_size[0]
        scores = scores.masked_fill(~seen, -torch.inf)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
    return torch.cat(outputs)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The plain kernel, for any tensors; the windows of its calls."""
    windows: list[tuple[int, int]] = []

    def noted(*arguments: Any, **options: Any) -> Tensor:
        windows.append(options["window_size"])
        return plain_kernel(*arguments, **options)

    monkeypatch.setattr(varlen, "kernel", noted)
    monkeypatch.setattr(varlen, "fits", lambda *tensors: True)
    varlen.register()
    return windows


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_values_and_gradients_are_those_of_separate_sequences(
    name: str, plain: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_float64(monkeypatch)
    model, pairs = build(name), make_pairs()
    weights = trainable(model)
    expected = separate_logps(model, pairs)
    wanted = gradients(expected, weights)
    attention.install(model, varlen.NAME)
    scores = score_pack(model, build_pack(pairs, range(len(pairs))))
    torch.testing.assert_close(scores.logps, expected, rtol=0, atol=1e-11)
    for mine, theirs in zip(gradients(scores.logps, weights), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    # soft-capped scores are beyond the kernel; a window of 6 tokens is 5 to the left
    assert set(plain) == {"gemma2": set(), "mistral_window": {(5, 0)}}.get(name, {(-1, 0)})


def test_what_the_kernel_does_not_take_goes_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    in_float64(monkeypatch)
    model, pairs = build("llama"), make_pairs()
    expected = separate_logps(model, pairs)
    varlen.register()
    attention.install(model, varlen.NAME)
    scores = score_pack(model, build_pack(pairs, range(len(pairs))))
    torch.testing.assert_close(scores.logps, expected, rtol=0, atol=1e-11)


def test_a_faster_kernel_is_chosen_when_it_is_right(
    plain: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen, "is_faster", lambda *arguments: True)
    model = build("mistral_window")
    decision = decide(model, CPU)
    assert (decision.way, decision.kernel) == ("packed", "varlen"), decision
    assert "variable-length" in decision.reason
    assert model.config._attn_implementation == varlen.NAME
    assert plain


@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_a_kernel_that_is_wrong_or_fails_is_passed_over(
    fault: str, plain: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> Tensor:
        if fault == "raises":
            raise RuntimeError("no kernel image is available for execution on the device")
        return plain_kernel(*arguments, **{**options, "window_size": (-1, 0)})

    monkeypatch.setattr(varlen, "kernel", broken)
    monkeypatch.setattr(varlen, "is_faster", lambda *arguments: True)
    model = build("mistral_window")
    decision = decide(model, CPU)
    assert (decision.way, decision.kernel) == ("packed", "sdpa"), decision
    assert model.config._attn_implementation == attention.NAME
    tried = decision.errors["packed varlen"]
    assert "no kernel image" in tried if isinstance(tried, str) else tried > 1e-3


@pytest.mark.parametrize("known", ["varlen", "sdpa"])
def test_a_resumed_run_keeps_the_kernel_that_was_timed(
    known: str, plain: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(*arguments: Any) -> bool:
        raise AssertionError("timed again")

    monkeypatch.setattr(varlen, "is_faster", timed)
    assert decide(build("llama"), CPU, kernel=known).kernel == known


def test_without_cuda_nothing_is_timed() -> None:
    assert not varlen.is_faster(build("llama"), CPU, torch.float32)
    decision = decide(build("llama"), CPU)
    assert (decision.kernel, list(decision.errors)) == ("sdpa", ["packed"])
