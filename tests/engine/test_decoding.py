"""Drawing tokens: from the right distribution, and by each answer's own random numbers."""

from __future__ import annotations

import pytest
import torch
from training.tiny import make_model

from qdpo.engine import decoding
from qdpo.engine.decoding import Sampler, greedy, sampled

LOGITS = torch.tensor([2.0, 0.0, 1.0, -1.0, 1.0])


def counts(temperature: float, top_p: float, draws: int = 4000) -> torch.Tensor:
    """How often each token is drawn, as shares."""
    sampler = Sampler(temperature, top_p, range(draws))
    tokens = sampler(range(draws), LOGITS.expand(draws, -1))
    return torch.bincount(tokens, minlength=len(LOGITS)) / draws


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_they_are_likely(temperature: float) -> None:
    wanted = (LOGITS / temperature).softmax(-1)
    # four standard errors
    assert (counts(temperature, 1.0) - wanted).abs().max() < 4 * (0.25 / 4000) ** 0.5


def test_the_nucleus_is_the_smallest_that_holds_top_p() -> None:
    # likelihoods 0.522, 0.192, 0.192, 0.071, 0.026
    for top_p, tokens in ((0.01, {0}), (0.52, {0}), (0.53, {0, 2}), (0.9, {0, 2, 4}), (0.95, {0, 1, 2, 4})):
        assert set(counts(1.0, top_p).nonzero()[:, 0].tolist()) == tokens, top_p
    found = counts(1.0, 0.9)
    assert found[0] == pytest.approx(0.522 / 0.906, abs=0.03)


def test_a_low_temperature_takes_the_likeliest() -> None:
    assert counts(1e-4, 1.0)[0] == 1


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 4.0])
def test_a_part_of_the_vocabulary_is_as_good_as_all_of_it(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # rounded, so that many are as likely as another
    logits = (scale * torch.randn(64, 3000, generator=torch.Generator().manual_seed(1))).bfloat16()
    for top_p in (0.5, 0.95, 1.0):
        drawn = Sampler(0.8, top_p, range(64))(range(64), logits)
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "LIKELIEST", 3000)
            assert torch.equal(Sampler(0.8, top_p, range(64))(range(64), logits), drawn), top_p


def test_an_answer_does_not_depend_on_its_neighbours() -> None:
    model = make_model("llama").eval()
    prompts, seeds = [[5, 6, 7], [8], [9, 10, 11, 12, 13]], [11, 22, 33]
    together = sampled(model, prompts, frozenset(), 12, Sampler(1.0, 0.95, seeds))
    alone = [
        sampled(model, [prompt], frozenset(), 12, Sampler(1.0, 0.95, [seed]))[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert together == alone
    # and another seed writes something else
    assert sampled(model, prompts, frozenset(), 12, Sampler(1.0, 0.95, [1, 2, 3])) != alone
    # a model that is asked one by one draws the same
    model._is_stateful = True
    assert sampled(model, prompts, frozenset(), 12, Sampler(1.0, 0.95, seeds)) == alone


def test_a_tiny_nucleus_is_greedy() -> None:
    model = make_model("llama").eval()
    prompts = [[5, 6, 7], [8]]
    assert sampled(model, prompts, frozenset(), 8, Sampler(1.0, 1e-6, [1, 2])) == greedy(model, prompts, frozenset(), 8)
