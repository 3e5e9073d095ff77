"""The log-probability head against full logits and log_softmax, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from packing.toys import build, in_float64, make_pairs, separate_logps
from peft import LoraConfig, get_peft_model
from torch import Tensor

from qdpo.errors import TrainingError
from qdpo.packing import attention, logps
from qdpo.packing.layout import build_pack
from qdpo.packing.logps import Head, head_of, score_pack, score_tokens

HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"with_bias": True},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 1.5},
    "all": {"with_bias": True, "scale": 1.7, "softcap": 2.0},
}


def make_head(with_bias: bool = False, scale: float = 1.0, softcap: float | None = None) -> Head:
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(23, *rest, generator=generator, dtype=torch.float64) for rest in ((6,), ()))
    return Head(weight, bias if with_bias else None, softcap, scale)


def inputs(rows: int = 11) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    return hidden, torch.randint(0, 23, (rows,), generator=generator)


def full_logits(hidden: Tensor, head: Head) -> Tensor:
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias) * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


@pytest.mark.parametrize("tile", [1, 50, 2**19])
@pytest.mark.parametrize("chunk", [3, 4, 11, 256])
@pytest.mark.parametrize("kind", HEADS)
def test_every_statistic_equals_the_one_from_full_logits(
    kind: str, chunk: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logps, "CHUNK_ROWS", chunk)
    monkeypatch.setitem(logps.TILE, "cpu", tile)
    head, (hidden, targets) = make_head(**HEADS[kind]), inputs()
    scores = score_tokens(hidden, head, targets, squares=True)
    logits = full_logits(hidden, head)
    log_p = torch.log_softmax(logits, -1)
    assert scores.log_squares is not None
    torch.testing.assert_close(scores.log_squares, torch.logsumexp(2 * log_p, -1).detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(scores.logps, log_p.gather(1, targets[:, None])[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(scores.entropy, -(log_p.exp() * log_p).sum(-1).detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(scores.mean_logit, logits.mean(-1).detach(), rtol=0, atol=1e-12)
    assert torch.equal(scores.top1, logits.argmax(-1) == targets)


@pytest.mark.parametrize("tile", [1, 50, 2**19])
@pytest.mark.parametrize("chunk", [3, 256])
@pytest.mark.parametrize("kind", HEADS)
def test_gradient(kind: str, chunk: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logps, "CHUNK_ROWS", chunk)
    monkeypatch.setitem(logps.TILE, "cpu", tile)
    head, (hidden, targets) = make_head(**HEADS[kind]), inputs()
    assert torch.autograd.gradcheck(lambda h: score_tokens(h, head, targets).logps, (hidden,))


def test_no_rows_are_no_scores() -> None:
    hidden, targets = inputs(0)
    assert score_tokens(hidden, make_head(), targets).logps.shape == (0,)


def test_only_log_probabilities_carry_a_gradient() -> None:
    hidden, targets = inputs()
    scores = score_tokens(hidden, make_head(), targets)
    assert scores.logps.requires_grad
    assert not any(part.requires_grad for part in (scores.entropy, scores.mean_logit, scores.top1))


def test_half_precision_sums_in_fp32() -> None:
    head, (hidden, targets) = make_head(), inputs()
    half = Head(head.weight.bfloat16(), None, None, 1.0)
    scores = score_tokens(hidden.detach().bfloat16(), half, targets)
    assert scores.logps.dtype == scores.entropy.dtype == scores.mean_logit.dtype == torch.float32
    logits = hidden.detach().bfloat16().float() @ half.weight.float().t()
    expected = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(scores.logps, expected, rtol=0, atol=0.05)


def test_sums_per_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    in_float64(monkeypatch)
    model, pairs = build("gemma2"), make_pairs()
    attention.install(model)
    pack = build_pack(pairs, range(len(pairs)))
    scores = score_pack(model, pack)
    completions = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    assert scores.tokens.tolist() == [len(completion) for completion in completions]
    for number, (pair, completion) in enumerate(zip(pairs * 2, completions, strict=True)):
        ids = torch.tensor([pair.prompt + completion])
        logits = model(input_ids=ids).logits[0, len(pair.prompt) - 1 : -1]
        log_p = torch.log_softmax(logits, -1)
        close = {"rtol": 0, "atol": 1e-11}
        torch.testing.assert_close(scores.entropy[number], -(log_p.exp() * log_p).sum(), **close)
        torch.testing.assert_close(scores.logits[number], logits.mean(-1).sum(), **close)
        assert scores.top1[number] == (logits.argmax(-1) == torch.tensor(completion)).sum()


def train_the_head(model: Any, how: str) -> Any:
    """Make a model's head trained in one of the ways that exist; returns the model with its weights randomised."""
    if how == "weight":
        model.lm_head.weight.requires_grad_(True)
        return model
    settings = {"adapter": {"target_modules": ["q_proj", "lm_head"]}, "copy": {"modules_to_save": ["lm_head"]}}[how]
    wrapped = get_peft_model(model, LoraConfig(r=2, **{"target_modules": ["q_proj"], **settings})).to(torch.float64)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return wrapped.get_base_model()


@pytest.mark.parametrize("how", ["weight", "adapter", "copy"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_trained_head_gets_its_gradient(architecture: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_float64(monkeypatch)
    monkeypatch.setattr(logps, "CHUNK_ROWS", 5)
    model, pairs = train_the_head(build(architecture), how), make_pairs()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    expected = separate_logps(model, pairs)
    gradients = torch.autograd.grad(expected.sin().sum(), parameters)
    attention.install(model)
    scores = score_pack(model, build_pack(pairs, range(len(pairs))))
    torch.testing.assert_close(scores.logps, expected, rtol=0, atol=1e-11)
    for mine, theirs in zip(torch.autograd.grad(scores.logps.sin().sum(), parameters), gradients, strict=True):
        assert theirs.any()
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_a_trained_head_gives_the_same_statistics_as_a_frozen_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logps, "CHUNK_ROWS", 3)
    frozen, (hidden, targets) = make_head(scale=1.7, softcap=2.0, with_bias=True), inputs()
    linear = torch.nn.Linear(6, 23, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(frozen.weight)
        linear.bias.copy_(frozen.bias)
    one = score_tokens(hidden, frozen, targets, squares=True)
    other = score_tokens(hidden, replace(frozen, trained=linear), targets, squares=True)
    for name in ("logps", "entropy", "mean_logit", "top1", "log_squares"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-12)
    assert not other.entropy.requires_grad


def test_a_head_that_is_no_linear_layer_is_refused() -> None:
    model = build("llama")
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(TrainingError, match="needs a linear layer"):
        head_of(model)
