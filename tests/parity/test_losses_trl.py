"""Every loss against stock TRL: the same tiny model, the same batch, the same loss, metrics and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import trl.trainer.utils
from parity.trl_cpu import TorchHead, install_torch_head, make_rows, make_trl_trainer, trl_batch, trl_metrics
from torch import Tensor

from qdpo.config.loss import F_DIVERGENCE_LOSSES, LossSettings
from qdpo.training.losses import (
    LOSS_TYPES,
    PairLogps,
    logp_gradients,
    pair_losses,
    reward_metrics,
)

PAIRS = 6
TOLERANCE = 1e-5

CASES: list[dict[str, Any]] = [
    *({"loss_type": [name]} for name in LOSS_TYPES if name != "exo_pair"),
    {"loss_type": ["exo_pair"], "label_smoothing": 1e-3},
    {"loss_type": ["robust"], "label_smoothing": 0.1},
    {"loss_type": ["aot"], "label_smoothing": 0.2},
    {"loss_type": ["aot_unpaired"], "label_smoothing": 0.2},
    {"loss_type": ["sigmoid"], "beta": 0.5},
    {"loss_type": ["discopop"], "beta": 0.05, "discopop_tau": 0.05},
    {"loss_type": ["discopop"], "beta": 0.5, "discopop_tau": 0.2},
    {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    {"loss_type": ["sigmoid", "aot", "sft"]},
    *(
        {"loss_type": names, "label_smoothing": smoothing, "f_divergence_type": divergence}
        for divergence in ("forward_kl", "js_divergence", "alpha_divergence")
        # TRL's sigmoid ignores label_smoothing, and its exo_pair needs some.
        for names, smoothing in ((["sigmoid"], 0.0), (sorted(F_DIVERGENCE_LOSSES - {"sigmoid"}), 1e-3))
    ),
]


def case_id(case: dict[str, Any]) -> str:
    return "+".join(case["loss_type"]) + "".join(f" {k}={v}" for k, v in case.items() if k != "loss_type")


def completion_logps(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Sum of the completion's token log-probabilities of each row, from full logits: (2n,) nats."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
    token_logps = torch.log_softmax(logits, dim=-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    return (token_logps * batch["completion_mask"][:, 1:]).sum(dim=1)


def pair_logps(model: Any, batch: dict[str, Tensor]) -> PairLogps:
    """Policy (with gradient) and reference (the base, adapter off) of the n pairs of a TRL batch."""
    chosen, rejected = completion_logps(model, batch).chunk(2)
    with torch.no_grad(), model.disable_adapter():
        ref_chosen, ref_rejected = completion_logps(model, batch).chunk(2)
    chosen_tokens, rejected_tokens = batch["completion_mask"].sum(dim=1).chunk(2)
    mean_chosen_tokens = chosen_tokens.double().mean().item()
    return PairLogps(chosen, rejected, ref_chosen, ref_rejected, chosen_tokens, rejected_tokens, mean_chosen_tokens)


def adapter_gradients(model: torch.nn.Module) -> Tensor:
    """All LoRA gradients as one vector; clears them."""
    gradients = [p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None]
    model.zero_grad()
    return torch.cat(gradients)


def assert_near(ours: Tensor, theirs: Tensor | float) -> None:
    """Within TOLERANCE, relative to max(1, |x|)."""
    expected = torch.as_tensor(theirs, dtype=ours.dtype)
    assert ours.shape == expected.shape
    error = ((ours - expected).abs() / expected.abs().clamp(min=1.0)).max().item()
    assert error <= TOLERANCE, f"ours {ours}, TRL {expected}: off by {error:.1e}"


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_loss_metrics_and_gradients_are_those_of_trl(case: dict[str, Any], tmp_path: Path) -> None:
    settings = LossSettings(**case)
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in case.items() if k != "loss_type"}

    with install_torch_head():
        trainer = make_trl_trainer(settings.loss_type, rows=make_rows(PAIRS), output_dir=tmp_path, **options)
        model, batch = trainer.model, trl_batch(trainer)
        trl_loss = trainer.compute_loss(model, batch)
        trl_loss.backward()
    theirs, trl_gradients = trl_metrics(trainer), adapter_gradients(model)

    pairs = pair_logps(model, batch)
    loss = pair_losses(pairs, settings).mean()
    loss.backward(retain_graph=True)
    assert_near(loss.detach(), trl_loss.detach())
    assert_near(adapter_gradients(model), trl_gradients)

    losses, grad_chosen, grad_rejected = logp_gradients(pairs, settings)
    (grad_chosen * pairs.chosen + grad_rejected * pairs.rejected).sum().backward()
    assert_near(losses.mean(), trl_loss.detach())
    assert_near(adapter_gradients(model), trl_gradients)

    ours = reward_metrics(pairs, settings.beta)
    assert {name for name in theirs if name.startswith(("rewards/", "logps/"))} == set(ours)
    for name, value in ours.items():
        assert_near(value.mean(), theirs[name])
    # The comparison says nothing if the policy is still the reference.
    assert ours["rewards/margins"].abs().max() > 1e-2
    assert trl_gradients.abs().max() > 1e-3


def test_cdpo_which_trl_no_longer_has(tmp_path: Path) -> None:
    """The published formula on a real model's log-probabilities; TRL's own sigmoid ignores label_smoothing."""
    rows = make_rows(PAIRS)
    with install_torch_head():
        trainer = make_trl_trainer("sigmoid", rows=rows, output_dir=tmp_path, kind="mistral", label_smoothing=0.1)
        model, batch = trainer.model, trl_batch(trainer)
        trl_loss = trainer.compute_loss(model, batch).detach()
    pairs = pair_logps(model, batch)
    p = torch.sigmoid(0.1 * (pairs.chosen - pairs.rejected - pairs.ref_chosen + pairs.ref_rejected)).detach()
    formula = (-0.9 * torch.log(p) - 0.1 * torch.log(1 - p)).mean()
    assert_near(pair_losses(pairs, LossSettings(label_smoothing=0.1)).mean().detach(), formula)
    assert_near(pair_losses(pairs, LossSettings()).mean().detach(), trl_loss)


def test_before_the_first_step_rewards_are_zero(tmp_path: Path) -> None:
    with install_torch_head():
        trainer = make_trl_trainer("sigmoid", rows=make_rows(3), output_dir=tmp_path, lora_b_std=0.0)
        batch = trl_batch(trainer)
        loss = trainer.compute_loss(trainer.model, batch)
    pairs = pair_logps(trainer.model, batch)
    assert_near(loss.detach(), torch.log(torch.tensor(2.0)))
    assert_near(pair_losses(pairs, LossSettings()).mean().detach(), loss.detach())
    for name, value in reward_metrics(pairs, 0.1).items():
        assert_near(value.mean(), trl_metrics(trainer)[name])


def test_the_torch_head_leaves_trl_as_it_was() -> None:
    before = trl.trainer.utils._ChunkedLogProbFunction
    with install_torch_head():
        assert trl.trainer.utils._ChunkedLogProbFunction is TorchHead
    assert trl.trainer.utils._ChunkedLogProbFunction is before
