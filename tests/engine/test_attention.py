"""Packed rows against separate sequences, in float64: log-probabilities and gradients are the same numbers."""

from __future__ import annotations

import pytest
import torch
from engine.toys import ARCHITECTURES, build, in_float64, make_pairs, score_pack, separate_logps, trainable
from torch import Tensor

from qdpo.data.pairs import TokenPair
from qdpo.engine import attention
from qdpo.engine.layout import build_pack

BACKENDS = {"looped": 0, "batched": 1 << 30}


def use_backend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LOOP_FROM", BACKENDS[name])


def gradients(values: Tensor, weights: list[torch.nn.Parameter]) -> list[Tensor]:
    """Gradients of a weighted sum, different for every sequence."""
    factors = torch.linspace(-1.0, 1.5, len(values), dtype=values.dtype)
    return list(torch.autograd.grad((factors * values).sum(), weights))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_equals_separate(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_float64(monkeypatch)
    use_backend(backend, monkeypatch)
    model, pairs = build(name), make_pairs()
    weights = trainable(model)
    expected = separate_logps(model, pairs)
    wanted = gradients(expected, weights)
    attention.install(model)
    scores = score_pack(model, build_pack(pairs, range(len(pairs))))
    torch.testing.assert_close(scores.logps, expected, rtol=0, atol=1e-11)
    for mine, theirs in zip(gradients(scores.logps, weights), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma2"])
def test_the_comparison_would_see_a_wrong_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_float64(monkeypatch)
    model, pairs = build(name), make_pairs()
    expected = separate_logps(model, pairs)
    attention.install(model)
    pack = build_pack(pairs, range(len(pairs)))
    # the completions lose their first prompt token
    pack.segments = [
        type(s)(s.start, s.length, s.prefix_start + 1, s.prefix_length - 1) if s.prefix_length > 1 else s
        for s in pack.segments
    ]
    assert (score_pack(model, pack).logps - expected).abs().max() > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_alone_and_among_others_is_the_same(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_float64(monkeypatch)
    use_backend(backend, monkeypatch)
    model, pairs = build("mistral_window"), make_pairs()
    attention.install(model)
    together = score_pack(model, build_pack(pairs, range(len(pairs)))).logps.view(2, -1)
    for i, pair in enumerate(pairs):
        alone = score_pack(model, build_pack([pair], [0])).logps
        torch.testing.assert_close(together[:, i], alone, rtol=0, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_checkpointing_recomputes_the_same(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_backend(backend, monkeypatch)
    model, pairs = build("mistral_window"), make_pairs()
    attention.install(model)
    weights = trainable(model)
    model.train()
    pack = build_pack(pairs, range(len(pairs)))
    plain = gradients(score_pack(model, pack).logps, weights)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    recomputed = gradients(score_pack(model, pack).logps, weights)
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma2"])
def test_ordinary_passes_keep_working(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_float64(monkeypatch)
    model = build(name)
    ids = torch.tensor([[0, 0, 1, *range(3, 20)], [1, *range(30, 49)]])
    mask = (ids != 0).long()
    before = model(input_ids=ids, attention_mask=mask).logits
    generated = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    attention.install(model)
    after = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(after[mask.bool()], before[mask.bool()], rtol=0, atol=1e-11)
    assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False), generated)


@pytest.mark.parametrize("flash", [True, False])
def test_cudnn_is_kept_out_and_the_other_kernels_are_left_alone(flash: bool) -> None:
    """cuDNN plans every new shape of a pack for a second or more on Hopper and Blackwell."""
    cuda = torch.backends.cuda
    before = cuda.cudnn_sdp_enabled(), cuda.flash_sdp_enabled()
    try:
        cuda.enable_cudnn_sdp(True)
        cuda.enable_flash_sdp(flash)
        attention.register()
        assert cuda.cudnn_sdp_enabled()  # another's attention, as long as no model has this one
        others = cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()
        attention.install(build("llama"))
        assert not cuda.cudnn_sdp_enabled()
        assert (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()) == others
        assert others == (flash, True, True)
    finally:
        cuda.enable_cudnn_sdp(before[0])
        cuda.enable_flash_sdp(before[1])


def test_the_window_counts_positions_not_places() -> None:
    model = build("mistral_window")
    attention.install(model)
    prompt, rejected = [1, 5, 6, 7], [40, 41, 42]
    short = TokenPair(0, prompt, [20, 21], rejected)
    long = TokenPair(0, prompt, [20, *range(50, 80)], rejected)
    # a longer chosen answer moves rejected away in the row, not in its own sequence
    first, second = (score_pack(model, build_pack([pair], [0])).logps[1] for pair in (short, long))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-11)


def test_values_may_be_narrower_than_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = make_pairs()
    pack = build_pack(pairs, range(len(pairs)))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, pack.n_tokens, width, generator=generator, dtype=torch.float64)
        for heads, width in ((4, 6), (2, 6), (2, 3))
    )
    outputs = []
    for backend in BACKENDS:
        use_backend(backend, monkeypatch)
        outputs.append(attention.packed_attention(torch.nn.Identity(), query, key, value, None, qdpo_pack=pack)[0])
    assert outputs[0].shape == (1, pack.n_tokens, 4, 3)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-12)
