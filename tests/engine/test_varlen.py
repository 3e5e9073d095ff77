"""The variable-length layout, with a plain kernel of the same contract in place of FlashAttention, which needs CUDA.

tests/gpu runs the real one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from engine.test_attention import gradients
from engine.toys import ARCHITECTURES, build, in_float64, make_pairs, score_pack, separate_logps, trainable
from torch import Tensor
from torch.nn.attention import varlen as torch_varlen

from qdpo.engine import attention, varlen
from qdpo.engine.layout import build_pack
from qdpo.engine.probe import decide

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


def varlen_attn_of_2_10(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    return_aux: Any = None,
) -> Tensor:
    raise AssertionError("called without the scale and the window of its layer")


def varlen_attn_of_2_11(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    lengths = (cu_seq_q, cu_seq_k, max_q, max_k)
    assert query.shape[1] == key.shape[1]
    return plain_kernel(query, key, value, *lengths, scale=scale, window_size=window_size, enable_gqa=False)


def like_torchs(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The plain kernel behind the signature of the installed torch's own function, bound as Python would bind it."""
    signature = inspect.signature(function)

    def bound(*arguments: Any, **options: Any) -> Tensor:
        said = signature.bind(*arguments, **options).arguments
        shared = said.get("enable_gqa", False)
        assert shared or said["query"].shape[1] == said["key"].shape[1]
        lengths = [said[name] for name in ("cu_seq_q", "cu_seq_k", "max_q", "max_k")]
        options = {"scale": said["scale"], "window_size": said["window_size"], "enable_gqa": shared}
        return plain_kernel(said["query"], said["key"], said["value"], *lengths, **options)

    bound.__signature__ = signature  # type: ignore[attr-defined]
    return bound


def scored_by(function: Callable[..., Tensor], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Score a toy's pairs through `function` in the place of torch's `varlen_attn`, as if it were on a card."""
    in_float64(monkeypatch)
    monkeypatch.setattr(torch_varlen, "varlen_attn", function)
    monkeypatch.setattr(varlen, "fits", lambda *tensors: True)
    model, pairs = build(name), make_pairs()
    weights = trainable(model)
    expected = separate_logps(model, pairs)
    wanted = gradients(expected, weights)
    varlen.register()
    attention.install(model, varlen.NAME)
    scores = score_pack(model, build_pack(pairs, range(len(pairs))))
    torch.testing.assert_close(scores.logps, expected, rtol=0, atol=1e-11)
    for mine, theirs in zip(gradients(scores.logps, weights), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["llama", "mistral_window"])  # shared keys; a window
def test_the_call_is_one_that_the_installed_torch_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function = like_torchs(torch_varlen.varlen_attn)
    if not {"scale", "window_size"} <= set(inspect.signature(function).parameters):
        with pytest.raises(NotImplementedError, match=r"varlen_attn has no scale and no window_size"):
            scored_by(function, name, monkeypatch)
        return
    scored_by(function, name, monkeypatch)


@pytest.mark.parametrize("window", [None, 8])
def test_the_installed_torchs_own_function_takes_it_forward_and_backward(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device, where tensors have shapes and no numbers: all checks of torch's own are made."""
    monkeypatch.setattr(varlen, "fits", lambda *tensors: True)
    pack = varlen.TRIAL.to(torch.device("meta"))
    query, key, value = (
        torch.zeros(1, heads, pack.n_tokens, 16, device="meta", dtype=torch.bfloat16, requires_grad=True)
        for heads in (4, 2, 2)
    )
    inputs = (torch.nn.Module(), query, key, value, None)
    if "scale" not in inspect.signature(torch_varlen.varlen_attn).parameters:
        with pytest.raises(NotImplementedError, match=r"varlen_attn has no scale and no window_size"):
            varlen.varlen_attention(*inputs, qdpo_pack=pack, sliding_window=window)
        return
    output, _ = varlen.varlen_attention(*inputs, qdpo_pack=pack, sliding_window=window)
    assert output.shape == (1, pack.n_tokens, 4, 16)
    output.sum().backward()
    for tensor in (query, key, value):
        assert tensor.grad is not None
        assert tensor.grad.shape == tensor.shape


@pytest.mark.parametrize("name", ["llama", "mistral_window"])
def test_a_torch_that_cannot_share_keys_gets_them_once_for_each_query(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored_by(varlen_attn_of_2_11, name, monkeypatch)


def test_a_torch_without_scale_and_window_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotImplementedError, match=r"torch 2\..* varlen_attn has no scale and no window_size"):
        scored_by(varlen_attn_of_2_10, "llama", monkeypatch)


def test_a_call_that_torch_does_not_take_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: the options as they are, against a function that lacks one."""

    def careless(*arguments: Any, **options: Any) -> Tensor:
        return torch_varlen.varlen_attn(*arguments, **options)

    monkeypatch.setattr(varlen, "kernel", careless)
    with pytest.raises(TypeError, match="enable_gqa"):
        scored_by(like_torchs(varlen_attn_of_2_11), "llama", monkeypatch)


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


@pytest.mark.parametrize("error", [TypeError("unexpected keyword"), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_kernel_that_cannot_be_timed_is_passed_over_and_named(
    error: Exception, plain: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(*arguments: Any) -> bool:
        raise error

    monkeypatch.setattr(varlen, "is_faster", timed)
    model = build("llama")
    decision = decide(model, CPU)
    assert (decision.way, decision.kernel) == ("packed", "sdpa"), decision
    assert model.config._attn_implementation == attention.NAME
    said = f"not timed: {type(error).__name__}: {error}"
    assert decision.errors["packed varlen"] == said
    assert f"without the variable-length kernel: {said}" in decision.reason
    assert not plain


def test_a_resumed_run_whose_torch_lacks_the_kernel_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_varlen, "varlen_attn", varlen_attn_of_2_10)
    monkeypatch.setattr(varlen, "fits", lambda *tensors: True)
    decision = decide(build("llama"), CPU, kernel="varlen")
    assert (decision.way, decision.kernel) == ("packed", "sdpa"), decision
    assert "has no scale and no window_size" in decision.reason


def test_without_cuda_nothing_is_timed() -> None:
    assert not varlen.is_faster(build("llama"), CPU, torch.float32)
    decision = decide(build("llama"), CPU)
    assert (decision.kernel, list(decision.errors)) == ("sdpa", ["packed"])
