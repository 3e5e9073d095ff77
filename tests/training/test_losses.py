"""The losses against published values, their own limits, and autograd."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from qdpo.config.loss import COUPLED, F_DIVERGENCE_LOSSES, SMOOTHED, FDivergence, LossSettings, LossType
from qdpo.training.losses import (
    LOSS_TYPES,
    PairLogps,
    logp_gradients,
    pair_losses,
    reward_metrics,
    rewards,
)

LN2 = math.log(2.0)


def settings_for(name: str, **options: Any) -> LossSettings:
    """The settings of one loss, with the label smoothing that exo_pair cannot do without."""
    if name == "exo_pair":
        options.setdefault("label_smoothing", 1e-3)
    return LossSettings(loss_type=[name], **options)


def random_pairs(n: int = 7, seed: int = 0, dtype: torch.dtype = torch.float64) -> PairLogps:
    """n pairs with margins of a few nats and completions of 3 to 30 tokens."""
    generator = torch.Generator().manual_seed(seed)

    def logps() -> Tensor:
        return (-20 + 4 * torch.randn(n, generator=generator, dtype=torch.float64)).to(dtype)

    chosen_tokens = torch.randint(3, 30, (n,), generator=generator)
    return PairLogps(
        chosen=logps(),
        rejected=logps(),
        ref_chosen=logps(),
        ref_rejected=logps(),
        chosen_tokens=chosen_tokens,
        rejected_tokens=torch.randint(3, 30, (n,), generator=generator),
        mean_chosen_tokens=chosen_tokens.double().mean().item(),
    )


def pairs_of_margin(*margins: float, dtype: torch.dtype = torch.float64) -> PairLogps:
    """One pair per margin d (nats), half of it won on the chosen side and half on the rejected side; 10 tokens each."""
    d = torch.tensor(margins, dtype=dtype)
    ref, ten = torch.full_like(d, -12.0), torch.full(d.shape, 10)
    return PairLogps(ref + d / 2, ref - d / 2, ref, ref, ten, ten, mean_chosen_tokens=10.0)


# -- published values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        (-20.0, 1.31326169),
        (-5.0, 0.82900532),
        (-1.0, 0.80796643),
        (0.0, 0.84657359),
        (1.0, 0.87518092),
        (5.0, 0.77744306),
        (20.0, 0.36787944),
    ],
)
def test_discopop_values(margin: float, expected: float) -> None:
    loss = pair_losses(pairs_of_margin(margin), LossSettings(loss_type=["discopop"], beta=0.05, discopop_tau=0.05))
    assert loss.item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("margin", "value", "curvature"), [(-2.37140, 0.785924, 1), (1.44012, 0.878290, -1)])
def test_discopop_local_minimum_and_maximum(margin: float, value: float, curvature: int) -> None:
    settings = LossSettings(loss_type=["discopop"], beta=0.05, discopop_tau=0.05)
    left, here, right = pair_losses(pairs_of_margin(margin - 1e-3, margin, margin + 1e-3), settings).tolist()
    assert here == pytest.approx(value, abs=1e-6)
    assert curvature * (left - here) > 0
    assert curvature * (right - here) > 0
    slope = logp_gradients(pairs_of_margin(margin), settings)[1].item()
    assert abs(slope) < 1e-6
    # At the start of training the gradient is positive: descent lowers the margin.
    assert logp_gradients(pairs_of_margin(0.0), settings)[1].item() > 0


def test_discopop_is_the_model_cards_modulation_only_when_tau_equals_beta() -> None:
    batch = random_pairs()
    d = (batch.chosen - batch.ref_chosen) - (batch.rejected - batch.ref_rejected)
    m, z = torch.sigmoid(d), 0.05 * d
    card = (1 - m) * -torch.nn.functional.logsigmoid(z) + m * torch.exp(-z)
    settings = LossSettings(loss_type=["discopop"], beta=0.05, discopop_tau=0.05)
    torch.testing.assert_close(pair_losses(batch, settings), card)
    other = pair_losses(batch, LossSettings(loss_type=["discopop"], beta=0.05, discopop_tau=0.1))
    assert (other - card).abs().max() > 1e-3


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.3])
def test_cdpo_formula(epsilon: float) -> None:
    batch, beta = random_pairs(), 0.2
    z = beta * ((batch.chosen - batch.rejected) - (batch.ref_chosen - batch.ref_rejected))
    expected = -(1 - epsilon) * torch.log(torch.sigmoid(z)) - epsilon * torch.log(torch.sigmoid(-z))
    torch.testing.assert_close(pair_losses(batch, LossSettings(beta=beta, label_smoothing=epsilon)), expected)


def test_cdpo_is_smallest_where_the_preference_has_the_assumed_certainty() -> None:
    epsilon, beta = 0.1, 0.1
    best = math.log((1 - epsilon) / epsilon) / beta
    settings = LossSettings(beta=beta, label_smoothing=epsilon)
    left, here, right = pair_losses(pairs_of_margin(best - 1, best, best + 1), settings).tolist()
    assert here < left
    assert here < right


def test_robust_is_unbiased_under_swapped_labels() -> None:
    # arXiv 2403.00409: the expectation over a label swapped with probability eps is the clean loss.
    epsilon, batch = 0.2, random_pairs()
    swapped = replace(
        batch,
        chosen=batch.rejected,
        rejected=batch.chosen,
        ref_chosen=batch.ref_rejected,
        ref_rejected=batch.ref_chosen,
        chosen_tokens=batch.rejected_tokens,
        rejected_tokens=batch.chosen_tokens,
    )
    settings = LossSettings(loss_type=["robust"], label_smoothing=epsilon)
    mixture = (1 - epsilon) * pair_losses(batch, settings) + epsilon * pair_losses(swapped, settings)
    torch.testing.assert_close(mixture, pair_losses(batch, LossSettings()))


AT_REFERENCE = {
    "sigmoid": LN2,
    "hinge": 1.0,
    "ipo": 25.0,
    "exo_pair": -LN2 - 0.5 * (math.log(1 - 1e-3) + math.log(1e-3)),
    "nca_pair": 2 * LN2,
    "robust": LN2,
    "bco_pair": 2 * LN2,
    "sppo_hard": 50.0,
    "aot": LN2,
    "aot_unpaired": LN2,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": 0.5 * LN2 + 0.5,
    "sigmoid_norm": LN2,
}


@pytest.mark.parametrize("name", [name for name in LOSS_TYPES if name != "sft"])
def test_value_where_the_policy_is_the_reference(name: str) -> None:
    batch = random_pairs()
    batch = replace(batch, chosen=batch.ref_chosen, rejected=batch.ref_rejected)
    assert pair_losses(batch, settings_for(name)).mean().item() == pytest.approx(AT_REFERENCE[name], rel=1e-12)


def test_sft_is_the_mean_over_the_chosen_tokens() -> None:
    batch = random_pairs()
    expected = -batch.chosen.sum() / batch.chosen_tokens.sum()
    torch.testing.assert_close(pair_losses(batch, LossSettings(loss_type=["sft"])).mean(), expected)


# -- properties of all losses ------------------------------------------------------------------------------------------


def test_the_names_are_those_of_the_config() -> None:
    assert get_args(LossType) == LOSS_TYPES
    assert set(LOSS_TYPES) >= COUPLED | SMOOTHED | F_DIVERGENCE_LOSSES


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in LOSS_TYPES] + [(name, {"label_smoothing": 0.1}) for name in sorted(SMOOTHED)],
)
def test_gradients(name: str, options: dict[str, float]) -> None:
    settings = settings_for(name, **options)
    batch = random_pairs()

    def losses(chosen: Tensor, rejected: Tensor) -> Tensor:
        return pair_losses(replace(batch, chosen=chosen, rejected=rejected), settings)

    leaves = (batch.chosen.clone().requires_grad_(), batch.rejected.clone().requires_grad_())
    assert torch.autograd.gradcheck(losses, leaves)


@pytest.mark.parametrize("divergence", [d for d in get_args(FDivergence) if d != "reverse_kl"])
@pytest.mark.parametrize("name", sorted(F_DIVERGENCE_LOSSES - {"sft"}))
def test_gradients_of_other_divergences(name: str, divergence: str) -> None:
    # Margins below one nat: beyond, exp(h) makes forward KL too steep for finite differences.
    batch = random_pairs()
    batch = replace(
        batch,
        chosen=batch.ref_chosen + 0.05 * (batch.chosen - batch.ref_chosen),
        rejected=batch.ref_rejected + 0.05 * (batch.rejected - batch.ref_rejected),
    )
    settings = settings_for(name, f_divergence_type=divergence)

    def losses(chosen: Tensor, rejected: Tensor) -> Tensor:
        return pair_losses(replace(batch, chosen=chosen, rejected=rejected), settings)

    leaves = (batch.chosen.clone().requires_grad_(), batch.rejected.clone().requires_grad_())
    assert torch.autograd.gradcheck(losses, leaves)
    assert not torch.allclose(losses(*leaves), pair_losses(batch, settings_for(name)))


def test_alpha_divergence_at_one_is_reverse_kl() -> None:
    batch = random_pairs()
    near = LossSettings(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=1 + 1e-5)
    exact = LossSettings(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=1.0)
    torch.testing.assert_close(pair_losses(batch, near), pair_losses(batch, LossSettings()), atol=1e-3, rtol=1e-3)
    assert torch.equal(pair_losses(batch, exact), pair_losses(batch, LossSettings()))


MONOTONE = ("sigmoid", "hinge", "robust", "bco_pair", "aot", "aot_unpaired", "apo_zero", "sigmoid_norm")


@pytest.mark.parametrize("name", MONOTONE)
def test_a_higher_margin_costs_less(name: str) -> None:
    values = [pair_losses(pairs_of_margin(d, d + 0.5), settings_for(name)).mean() for d in range(-30, 9, 2)]
    assert all(later < earlier for earlier, later in pairwise(values))


@pytest.mark.parametrize("name", [name for name in LOSS_TYPES if name not in {"ipo", "sppo_hard"}])
@pytest.mark.parametrize("margin", [-2000.0, 2000.0])
def test_extreme_margins_stay_finite_in_fp32(name: str, margin: float) -> None:
    # DiscoPOP with tau = beta = 0.1 would be 0 * inf here if exp(-beta d) were computed alone.
    batch = pairs_of_margin(margin, dtype=torch.float32)
    for value in logp_gradients(batch, settings_for(name)):
        assert torch.isfinite(value).all()


def test_fp32_keeps_small_margins() -> None:
    batch = random_pairs(n=64)
    single = replace(
        batch,
        chosen=batch.chosen.float(),
        rejected=batch.rejected.float(),
        ref_chosen=batch.ref_chosen.float(),
        ref_rejected=batch.ref_rejected.float(),
    )
    for name in LOSS_TYPES:
        expected = pair_losses(batch, settings_for(name))
        torch.testing.assert_close(pair_losses(single, settings_for(name)).double(), expected, atol=1e-5, rtol=1e-5)


# -- several losses at once --------------------------------------------------------------------------------------------


def test_weighted_list_is_the_weighted_sum() -> None:
    batch = random_pairs()
    names, weights = ["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0]
    expected = sum(w * pair_losses(batch, LossSettings(loss_type=[n])) for n, w in zip(names, weights, strict=True))
    torch.testing.assert_close(pair_losses(batch, LossSettings(loss_type=names, loss_weights=weights)), expected)
    plain = sum(pair_losses(batch, LossSettings(loss_type=[n])) for n in names)
    torch.testing.assert_close(pair_losses(batch, LossSettings(loss_type=names)), plain)


# -- the cut into micro-batches ----------------------------------------------------------------------------------------

CUTS = ([7], [1] * 7, [3, 4], [5, 1, 1])
MIXES: list[tuple[str, ...]] = [(name,) for name in LOSS_TYPES] + [("sigmoid", "aot", "sft")]


def part(batch: PairLogps, start: int, stop: int) -> PairLogps:
    """The pairs start..stop of a step."""
    tensors: dict[str, Any] = {k: v[start:stop] for k, v in vars(batch).items() if isinstance(v, Tensor)}
    return replace(batch, **tensors)


def spans(cut: list[int]) -> list[tuple[int, int]]:
    ends = torch.tensor(cut).cumsum(0).tolist()
    return [(end - size, end) for end, size in zip(ends, cut, strict=True)]


@pytest.mark.parametrize("names", MIXES, ids="+".join)
def test_the_cut_changes_nothing(names: tuple[str, ...]) -> None:
    """The gradient of a toy policy is the same for every cut, by the way its settings call for."""
    smoothing = 1e-3 if "exo_pair" in names else 0.0
    base, settings = random_pairs(), LossSettings(loss_type=list(names), label_smoothing=smoothing)
    n = len(base)
    features = torch.randn(2, n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def policy(weight: Tensor, start: int, stop: int) -> PairLogps:
        chosen, rejected = (features[:, start:stop] @ weight).unbind()
        pairs = part(base, start, stop)
        return replace(pairs, chosen=pairs.chosen + chosen, rejected=pairs.rejected + rejected)

    whole = torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64, requires_grad=True)
    pair_losses(policy(whole, 0, n), settings).mean().backward()

    assert settings.couples_pairs == bool({"aot", "aot_unpaired"} & set(names))
    for cut in CUTS:
        weight = whole.detach().clone().requires_grad_()
        if settings.couples_pairs:
            with torch.no_grad():
                _, grad_chosen, grad_rejected = logp_gradients(policy(weight, 0, n), settings)
        for start, stop in spans(cut):
            pairs = policy(weight, start, stop)
            if settings.couples_pairs:
                (grad_chosen[start:stop] * pairs.chosen + grad_rejected[start:stop] * pairs.rejected).sum().backward()
            else:
                (pair_losses(pairs, settings).sum() / n).backward()
        torch.testing.assert_close(weight.grad, whole.grad, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", LOSS_TYPES)
def test_coupled_says_which_losses_couple(name: str) -> None:
    """A loss is coupled when one pair's gradient moves as another pair's log-probability moves."""
    batch = random_pairs()
    moved = replace(batch, chosen=batch.chosen + torch.eye(len(batch), dtype=torch.float64)[0] * 30)
    before, after = (logp_gradients(b, settings_for(name)) for b in (batch, moved))
    unchanged = all(torch.equal(a[1:], b[1:]) for a, b in zip(before[1:], after[1:], strict=True))
    assert unchanged == (name not in COUPLED)


def test_logp_gradients_asks_for_no_gradient_and_leaves_none() -> None:
    batch = random_pairs()
    batch.chosen.requires_grad_()
    with torch.no_grad():
        values = logp_gradients(batch, LossSettings(loss_type=["aot"]))
    assert batch.chosen.grad is None
    assert not any(value.requires_grad for value in values)
    assert torch.equal(logp_gradients(batch, LossSettings(loss_type=["sft"]))[2], torch.zeros(7, dtype=torch.float64))


# -- rewards -----------------------------------------------------------------------------------------------------------


def test_rewards_and_metrics() -> None:
    zero, ten = torch.zeros(3), torch.full((3,), 10)
    batch = PairLogps(
        torch.tensor([1.0, -2.0, 3.0], requires_grad=True), torch.tensor([0.0, 1.0, 3.0]), zero, zero, ten, ten
    )
    chosen, rejected = rewards(batch, beta=0.5)
    assert chosen.tolist() == [0.5, -1.0, 1.5]
    assert rejected.tolist() == [0.0, 0.5, 1.5]
    assert not chosen.requires_grad
    metrics = reward_metrics(batch, beta=0.5)
    assert metrics["rewards/margins"].tolist() == [0.5, -1.5, 0.0]
    # A tie is not a win.
    assert metrics["rewards/accuracies"].tolist() == [1.0, 0.0, 0.0]
    assert metrics["logps/chosen"].tolist() == [1.0, -2.0, 3.0]
    assert set(metrics) == {
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
    }
    assert not any(value.requires_grad for value in metrics.values())


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss_type": ["sigmod"]}, "'sigmoid', 'hinge'"),
        ({"loss_type": "sigmoid"}, "valid list"),
        ({"loss_type": []}, "at least 1 item"),
        ({"label_smoothing": 0.5}, r"label_smoothing\n.*less than 0.5"),
        ({"label_smoothing": -0.1}, r"label_smoothing\n.*greater than or equal to 0"),
        ({"label_smoothing": math.nan}, r"label_smoothing\n.*finite number"),
        ({"loss_type": ["hinge"], "label_smoothing": 0.1}, "would ignore it"),
        ({"loss_type": ["exo_pair"]}, "set label_smoothing: 0.001"),
        ({"beta": 0.0}, r"beta\n.*greater than 0"),
        ({"beta": math.inf}, r"beta\n.*finite number"),
        ({"discopop_tau": -1.0}, r"discopop_tau\n.*greater than 0"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "1 values for the 2 losses"),
        ({"loss_weights": [-1.0]}, "would train away"),
        ({"loss_weights": [0.0]}, "not all 0"),
        ({"loss_weights": [math.nan]}, r"loss_weights.0\n.*finite number"),
        ({"f_divergence_type": "kl"}, "'reverse_kl', 'forward_kl'"),
        (
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": math.nan},
            r"f_alpha_divergence_coef\n.*finite number",
        ),
        ({"loss_type": ["sigmoid", "aot"], "f_divergence_type": "forward_kl"}, r"no meaning for \['aot'\]"),
    ],
)
def test_settings_that_cannot_mean_anything_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LossSettings(**options)


def test_sft_refuses_to_guess_the_steps_token_count() -> None:
    with pytest.raises(ValueError, match="mean_chosen_tokens"):
        pair_losses(replace(random_pairs(), mean_chosen_tokens=None), LossSettings(loss_type=["sft"]))


def test_shapes_that_would_broadcast_are_refused() -> None:
    batch = random_pairs()
    with pytest.raises(ValueError, match=r"same shape \(n,\)"):
        replace(batch, rejected=batch.rejected[:, None])
    with pytest.raises(ValueError, match=r"same shape \(n,\)"):
        replace(batch, chosen_tokens=batch.chosen_tokens[:1])
