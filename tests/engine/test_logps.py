"""The log-probability head against full logits and log_softmax, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from engine.toys import build, in_float64, make_pairs, score_pack, separate_logps
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from qdpo.engine import attention, logps
from qdpo.engine.layout import build_pack
from qdpo.engine.logps import Head, head_of, score_tokens
from qdpo.errors import TrainingError

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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_sums_in_fp32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities of a half-precision head beside those in float64, for logits of three nats (one sigma)."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(3001, 256, generator=generator) * 3 / 16).to(dtype)
    hidden = torch.randn(300, 256, generator=generator).to(dtype).requires_grad_()
    exact = torch.log_softmax(hidden.detach().double() @ weight.double().t(), -1)
    targets = torch.multinomial(exact.exp(), 1, generator=generator)[:, 0]
    expected = exact.gather(1, targets[:, None])[:, 0]

    def errors() -> tuple[float, float]:
        scores = score_tokens(hidden, Head(weight, None, None, 1.0), targets)
        assert scores.logps.dtype == scores.entropy.dtype == scores.mean_logit.dtype == torch.float32
        (gradient,) = torch.autograd.grad(scores.logps.sum(), hidden)
        slope = weight.double()[targets] - exact.exp() @ weight.double()
        return float((scores.logps.detach() - expected).abs().max()), float((gradient - slope).norm() / slope.norm())

    error, wrong = errors()
    monkeypatch.setattr(logps, "logits_of", lambda h, w, wanted: (h @ w.t()).to(wanted))
    rounded, rounded_wrong = errors()
    print(
        f"log-probabilities within {error:.1e}, rounded logits {rounded:.1e}; gradient {wrong:.1e}, {rounded_wrong:.1e}"
    )
    assert error < 1e-5
    assert rounded > 100 * error
    assert wrong < torch.finfo(dtype).eps
    assert wrong <= rounded_wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_products_that_are_exact_already_stay_as_they_are(dtype: torch.dtype) -> None:
    """Parity with TRL is to the bit."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 64, generator=generator, dtype=dtype) for rows in (9, 2500))
    assert torch.equal(logps.logits_of(hidden, weight, dtype), hidden @ weight.t())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_cuda_multiplies_half_precision_into_fp32(dtype: torch.dtype) -> None:
    """On a card that does not exist: the operator is chosen, and no result is in half precision."""
    with FakeTensorMode(), Products() as seen:
        hidden, weight = (torch.empty(rows, 64, dtype=dtype, device="cuda") for rows in (9, 2500))
        logits = logps.logits_of(hidden, weight, torch.float32)
    assert (logits.dtype, logits.shape) == (torch.float32, (9, 2500))
    assert seen.operators == ["mm.dtype"]


class Products(TorchDispatchMode):
    """Lists the matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "mm" in function._opname:
            self.operators.append(f"{function._opname}.{function._overloadname}")
        return function(*args, **(kwargs or {}))


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
