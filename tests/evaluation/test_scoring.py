"""Log-probabilities and KL of base and policy, against full logits of every sequence on its own."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from engine.toys import build, make_pairs, separate_logps
from peft import LoraConfig, get_peft_model

from qdpo.data.pairs import TokenPair
from qdpo.engine.engine import Engine
from qdpo.engine.layouts import Separate
from qdpo.engine.probe import decide
from qdpo.errors import UnavailableError
from qdpo.evaluation.scoring import score_pairs

CPU = torch.device("cpu")


def adapted(name: str, *more: str) -> tuple[Any, Any]:
    """A toy with an adapter that does something, and the model inside."""
    settings = LoraConfig(r=4, target_modules=["q_proj", "down_proj", *more])
    policy = get_peft_model(build(name, torch.float32), settings)
    torch.manual_seed(3)
    with torch.no_grad():
        for key, parameter in policy.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.3)
    return policy.eval(), policy.get_base_model().eval()


def separate_kl(policy: Any, model: Any, pair: TokenPair, completion: list[int]) -> float:
    ids, start = torch.tensor([pair.prompt + completion]), len(pair.prompt) - 1
    with torch.no_grad():
        after = model(ids).logits[0, start:-1].double().log_softmax(-1)
        with policy.disable_adapter():
            before = model(ids).logits[0, start:-1].double().log_softmax(-1)
    return float((after.exp() * (after - before)).sum())


@pytest.mark.parametrize(
    ("name", "more"), [("llama", ()), ("gemma2", ()), ("qwen2", ()), ("llama", ("lm_head",))], ids=str
)
@pytest.mark.parametrize("layout", ["probed", "unshared"])
def test_scores_are_those_of_separate_sequences(name: str, more: tuple[str, ...], layout: str) -> None:
    policy, model = adapted(name, *more)
    pairs = make_pairs()
    with torch.no_grad():
        after = separate_logps(model, pairs)
        with policy.disable_adapter():
            before = separate_logps(model, pairs)
    kl = [[separate_kl(policy, model, pair, c) for c in (pair.chosen, pair.rejected)] for pair in pairs]
    found = decide(model, CPU).layout if layout == "probed" else Separate()
    assert found is not None
    seen: list[int] = []
    scores = score_pairs(
        Engine(model, CPU, layout=found), pairs, 60, policy.disable_adapter, contextlib.nullcontext, seen.append
    )
    n = len(pairs)
    assert sum(seen) == n
    assert len(seen) > 1
    torch.testing.assert_close(scores.base.T.reshape(-1).float(), before, atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(scores.policy.T.reshape(-1).float(), after, atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(scores.kl, torch.tensor(kl, dtype=torch.float64), atol=1e-4, rtol=1e-3)
    assert scores.tokens.tolist() == [[len(pair.chosen), len(pair.rejected)] for pair in pairs]
    assert (scores.base - scores.policy).abs().max() > 0.1
    assert float(scores.kl.min()) >= 0


def test_a_base_alone_has_no_divergence() -> None:
    model = build("llama", torch.float32)
    scores = score_pairs(Engine(model, CPU, layout=Separate()), make_pairs(), 100, contextlib.nullcontext, None)
    assert torch.equal(scores.base, scores.policy)
    assert not scores.kl.any()


def test_a_pass_that_does_not_fit_says_which_setting_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Engine, "predicting", full)
    engine = Engine(build("llama", torch.float32), CPU, layout=Separate())
    with pytest.raises(UnavailableError) as caught:
        score_pairs(engine, make_pairs(), 4096, contextlib.nullcontext, None)
    assert "tokens_without_grad=2048" in str(caught.value.hint)
