"""The preference losses: pure functions of summed log-probabilities, with TRL's names and defaults.

Notation, for one pair (prompt x, chosen completion y_c, rejected completion y_r), all in nats:

    h_c = log pi(y_c|x) - log ref(y_c|x)        how far the policy left the reference on the chosen completion
    h_r = log pi(y_r|x) - log ref(y_r|x)        the same on the rejected one
    d   = h_c - h_r                             the margin; beta * d is DPO's "logits"
    s   = logsigmoid

With another f-divergence than reverse KL, the losses of `F_DIVERGENCE_LOSSES` see f'(exp(h)) in place of h.

One optimizer step is the mean of `pair_losses` over the n pairs of its global batch. How these pairs are cut into
micro-batches must not change the result:

* Most losses look at one pair at a time: call `pair_losses` per micro-batch and back-propagate its sum / n.
* `sft` is a mean over the step's chosen tokens. Token counts are known before any forward, so
  `PairLogps.mean_chosen_tokens` carries that mean and the pairs come apart again.
* The losses of `qdpo.config.loss.COUPLED` sort across the whole batch. For these (`LossSettings.couples_pairs`),
  compute all log-probabilities of the step without gradient, call `logp_gradients` on the whole batch, then run each
  micro-batch with gradient and back-propagate `(grad_chosen * chosen + grad_rejected * rejected).sum()`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from qdpo.config.loss import LossSettings


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of n preference pairs, summed over the tokens of each completion.

    Compute and sum them in fp32: a sum of hundreds of tokens loses its margin in bf16.

    Args:
        chosen: (n,) nats. Policy's log-probability of each chosen completion; carries the gradient.
        rejected: (n,) nats. Policy's log-probability of each rejected completion; carries the gradient.
        ref_chosen: (n,) nats. Reference's log-probability of each chosen completion.
        ref_rejected: (n,) nats. Reference's log-probability of each rejected completion.
        chosen_tokens: (n,) tokens. Number of log-probabilities summed in `chosen`.
        rejected_tokens: (n,) tokens. Number of log-probabilities summed in `rejected`.
        mean_chosen_tokens: tokens. Mean of `chosen_tokens` over ALL pairs of the optimizer step, of which these n
            may be a part. Only `sft` reads it.

    Raises:
        ValueError: a tensor is not of shape (n,).
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    mean_chosen_tokens: float | None = None

    def __post_init__(self) -> None:
        # (n,) beside (n, 1) would broadcast to (n, n) and train on pairs that do not exist.
        shapes = {f.name: tuple(getattr(self, f.name).shape) for f in fields(self) if f.name != "mean_chosen_tokens"}
        if len(set(shapes.values())) > 1 or self.chosen.ndim != 1:
            raise ValueError(
                f"every tensor of PairLogps must have the same shape (n,), one value per pair; got {shapes}"
            )

    def __len__(self) -> int:
        return self.chosen.shape[0]


def pair_losses(batch: PairLogps, settings: LossSettings) -> Tensor:
    """The loss of each pair; its mean over the n pairs of an optimizer step is the step's loss.

    Differentiable with respect to `batch.chosen` and `batch.rejected`. When `settings.couples_pairs`, the n pairs must
    be the whole step (see `logp_gradients`), and entry i then belongs to the i-th place of the sorted batch rather than
    to pair i: only the mean has a meaning.

    Args:
        batch: log-probabilities of n pairs.
        settings: the loss or the weighted sum of losses.

    Returns:
        (n,) no unit (`sppo_hard` and `ipo`: nats squared).

    Raises:
        ValueError: `sft` without `batch.mean_chosen_tokens`.
    """
    h_chosen = batch.chosen - batch.ref_chosen
    h_rejected = batch.rejected - batch.ref_rejected
    terms = _Terms(
        batch=batch,
        h_chosen=h_chosen,
        h_rejected=h_rejected,
        score_chosen=_divergence_score(h_chosen, settings),
        score_rejected=_divergence_score(h_rejected, settings),
    )
    total = torch.zeros_like(h_chosen)
    for name, weight in zip(settings.loss_type, settings.weights, strict=True):
        total = total + weight * _LOSSES[name](terms, settings)
    return total


def logp_gradients(batch: PairLogps, settings: LossSettings) -> tuple[Tensor, Tensor, Tensor]:
    """The losses of a whole optimizer step, and the gradient of their mean for each log-probability.

    With these, a step whose pairs are coupled can still be cut into micro-batches: back-propagating
    `(grad_chosen * chosen + grad_rejected * rejected).sum()` over each micro-batch in turn gives the gradient of the
    step's loss, whatever the cut. No 1/n is left to apply.

    Args:
        batch: log-probabilities of all n pairs of the step; no gradient is needed or kept.
        settings: the loss or the weighted sum of losses.

    Returns:
        losses: (n,) as `pair_losses`, without gradient.
        grad_chosen: (n,) 1/nats, d mean(losses) / d batch.chosen.
        grad_rejected: (n,) 1/nats, d mean(losses) / d batch.rejected.
    """
    with torch.enable_grad():
        chosen = batch.chosen.detach().requires_grad_()
        rejected = batch.rejected.detach().requires_grad_()
        losses = pair_losses(replace(batch, chosen=chosen, rejected=rejected), settings)
        grad_chosen, grad_rejected = torch.autograd.grad(losses.mean(), (chosen, rejected), materialize_grads=True)
    return losses.detach(), grad_chosen, grad_rejected


def rewards(batch: PairLogps, beta: float) -> tuple[Tensor, Tensor]:
    """DPO's implicit rewards, without gradient (arXiv 2305.18290, Eq. 5, without its beta * log Z(x)).

    Args:
        batch: log-probabilities of n pairs.
        beta: 1/nats.

    Returns:
        beta * h_c and beta * h_r: each (n,), no unit.
    """
    with torch.no_grad():
        return beta * (batch.chosen - batch.ref_chosen), beta * (batch.rejected - batch.ref_rejected)


def reward_metrics(batch: PairLogps, beta: float) -> dict[str, Tensor]:
    """TRL's reward and log-probability metrics, one value per pair; their mean over all pairs is what TRL logs.

    Kept per pair, and on the device, so that a mean over a step or an evaluation weighs each pair once whatever the
    micro-batches were, and costs no device synchronisation before it is logged.

    Args:
        batch: log-probabilities of n pairs.
        beta: 1/nats.

    Returns:
        (n,) each: rewards/chosen, rewards/rejected, rewards/margins (no unit), rewards/accuracies (1.0 when the chosen
        reward is strictly higher, else 0.0: a tie counts as wrong), logps/chosen and logps/rejected (nats).
    """
    chosen, rejected = rewards(batch, beta)
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
        "rewards/margins": chosen - rejected,
        "logps/chosen": batch.chosen.detach(),
        "logps/rejected": batch.rejected.detach(),
    }


# -- the losses, each (n,) ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Terms:
    """What the losses are made of, each tensor (n,) in nats; `score_*` is f'(exp(h)), equal to h for reverse KL."""

    batch: PairLogps
    h_chosen: Tensor
    h_rejected: Tensor
    score_chosen: Tensor
    score_rejected: Tensor

    @property
    def margin(self) -> Tensor:
        """d = score_c - score_r, (n,)."""
        return self.score_chosen - self.score_rejected

    @property
    def margin_per_token(self) -> Tensor:
        """score_c / |y_c| - score_r / |y_r|, (n,) nats per token."""
        return self.score_chosen / self.batch.chosen_tokens.clamp(
            min=1
        ) - self.score_rejected / self.batch.rejected_tokens.clamp(min=1)


def _smoothed_logistic(z: Tensor, label_smoothing: float) -> Tensor:
    """-(1 - eps) s(z) - eps s(-z): cross-entropy against a label that is right with probability 1 - eps; z: (n,)."""
    return -(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)


def _sigmoid(t: _Terms, s: LossSettings) -> Tensor:
    """DPO, -s(beta d): arXiv 2305.18290, Eq. 7. With label_smoothing, conservative DPO (cDPO): E. Mitchell, "A note on
    DPO with noisy preferences and relationship to IPO" (2023), Eq. 3; TRL 1.15 no longer has it."""
    return _smoothed_logistic(s.beta * t.margin, s.label_smoothing)


def _hinge(t: _Terms, s: LossSettings) -> Tensor:
    """max(0, 1 - beta d): the hinge of SLiC-HF (arXiv 2305.10425, section 2) on the normalised likelihoods of RSO
    (arXiv 2309.06657)."""
    return torch.relu(1 - s.beta * t.margin)


def _ipo(t: _Terms, s: LossSettings) -> Tensor:
    """(d' - 1 / (2 beta))^2: arXiv 2310.12036, Eq. 17, with d' the margin per token, as TRL has it from the authors."""
    return (t.margin_per_token - 1 / (2 * s.beta)) ** 2


def _exo_pair(t: _Terms, s: LossSettings) -> Tensor:
    """KL from softmax(beta h) over {chosen, rejected} to [1 - eps, eps]: arXiv 2402.00856, Eq. 16."""
    z = s.beta * t.margin
    chosen = torch.sigmoid(z) * (logsigmoid(z) - math.log1p(-s.label_smoothing))
    rejected = torch.sigmoid(-z) * (logsigmoid(-z) - math.log(s.label_smoothing))
    return chosen + rejected


def _nca_pair(t: _Terms, s: LossSettings) -> Tensor:
    """-s(beta h_c) - s(-beta h_c) / 2 - s(-beta h_r) / 2: NCA for pairs, arXiv 2402.05369, section 4.1."""
    chosen, rejected = s.beta * t.h_chosen, s.beta * t.h_rejected
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def _robust(t: _Terms, s: LossSettings) -> Tensor:
    """(-(1 - eps) s(beta d) + eps s(-beta d)) / (1 - 2 eps), unbiased under swapped labels: arXiv 2403.00409,
    section 3.1."""
    z = s.beta * t.margin
    return (-(1 - s.label_smoothing) * logsigmoid(z) + s.label_smoothing * logsigmoid(-z)) / (1 - 2 * s.label_smoothing)


def _bco_pair(t: _Terms, s: LossSettings) -> Tensor:
    """-s(beta h_c) - s(-beta h_r): BCO for pairs, arXiv 2404.04656, section 4, without the paper's reward shift: TRL
    1.15 dropped the running mean that older versions subtracted, so this loss has no state."""
    return -logsigmoid(s.beta * t.h_chosen) - logsigmoid(-s.beta * t.h_rejected)


def _sppo_hard(t: _Terms, s: LossSettings) -> Tensor:
    """(h_c - 1 / (2 beta))^2 + (h_r + 1 / (2 beta))^2: arXiv 2405.00675, Eq. 4.7 with P = 1 and P = 0."""
    return (t.h_chosen - 0.5 / s.beta) ** 2 + (t.h_rejected + 0.5 / s.beta) ** 2


def _aot(t: _Terms, s: LossSettings) -> Tensor:
    """Smoothed logistic loss between the sorted log pi(y_c) - log pi(y_r) and the sorted log ref(y_c) - log ref(y_r):
    paired AOT, arXiv 2406.05882, section 3. Couples pairs. (Older TRL called this `aot_pair`.)"""
    policy = torch.sort(t.batch.chosen - t.batch.rejected).values
    reference = torch.sort(t.batch.ref_chosen - t.batch.ref_rejected).values
    return _smoothed_logistic(s.beta * (policy - reference), s.label_smoothing)


def _aot_unpaired(t: _Terms, s: LossSettings) -> Tensor:
    """Smoothed logistic loss between the sorted h_c and the sorted h_r: unpaired AOT, arXiv 2406.05882, section 3.
    Couples pairs. (Older TRL called this `aot`.)"""
    delta = torch.sort(t.h_chosen).values - torch.sort(t.h_rejected).values
    return _smoothed_logistic(s.beta * delta, s.label_smoothing)


def _apo_zero(t: _Terms, s: LossSettings) -> Tensor:
    """1 - sigmoid(beta h_c) + sigmoid(beta h_r): arXiv 2408.06266, Eq. 7, for chosen answers better than the model."""
    return torch.sigmoid(-s.beta * t.h_chosen) + torch.sigmoid(s.beta * t.h_rejected)


def _apo_down(t: _Terms, s: LossSettings) -> Tensor:
    """sigmoid(beta h_c) + 1 - sigmoid(beta (h_c - h_r)): arXiv 2408.06266, Eq. 8, for chosen answers worse than the
    model."""
    return torch.sigmoid(s.beta * t.h_chosen) + torch.sigmoid(-s.beta * (t.h_chosen - t.h_rejected))


def _discopop(t: _Terms, s: LossSettings) -> Tensor:
    """(1 - m) * -s(l) + m * exp(-l), l = beta d, m = sigmoid(l / tau): arXiv 2406.08414, Eq. 5.

    Not convex: at beta = tau = 0.05 it falls towards d = -2.37 and peaks at d = 1.44, so that its gradient first pushes
    the margin of an untrained policy down.
    """
    z = s.beta * t.margin
    # m * exp(-l) as one exponential: exp(-l) alone overflows for l < -88 in fp32, and 0 * inf is NaN.
    logistic = -torch.sigmoid(-z / s.discopop_tau) * logsigmoid(z)
    exponential = torch.exp(logsigmoid(z / s.discopop_tau) - z)
    return logistic + exponential


def _sft(t: _Terms, s: LossSettings) -> Tensor:
    """Cross-entropy on the chosen completions, mean over all chosen tokens of the step (TRL's `sft`).

    The mean over tokens is sum_i(-log pi(y_c,i)) / sum_i(tokens_i) = mean_i(-log pi(y_c,i) / mean_chosen_tokens).
    """
    if t.batch.mean_chosen_tokens is None:
        raise ValueError(
            "the sft loss is a mean over all chosen tokens of the step and needs PairLogps.mean_chosen_tokens; pass "
            "the mean of chosen_tokens over the whole step, not over a micro-batch"
        )
    return -t.batch.chosen / max(t.batch.mean_chosen_tokens, 1.0)


def _sigmoid_norm(t: _Terms, s: LossSettings) -> Tensor:
    """-s(beta (h_c / |y_c| - h_r / |y_r|)): the length-normalised DPO of Tulu 3, arXiv 2411.15124."""
    return -logsigmoid(s.beta * t.margin_per_token)


def _divergence_score(h: Tensor, s: LossSettings) -> Tensor:
    """f'(u) at u = exp(h) = pi / ref, up to a constant: f-DPO, arXiv 2309.16240.

    Args:
        h: (n,) nats.

    Returns:
        (n,); reverse KL: log u. forward KL: 1 - 1/u. Jensen-Shannon: log(2u / (1 + u)).
        alpha: (u^(alpha - 1) - 1) / (alpha - 1), which tends to log u as alpha tends to 1.
    """
    if s.f_divergence_type == "reverse_kl":
        return h
    if s.f_divergence_type == "forward_kl":
        return -torch.expm1(-h)
    if s.f_divergence_type == "js_divergence":
        return math.log(2) + logsigmoid(h)
    exponent = s.f_alpha_divergence_coef - 1.0
    if abs(exponent) < 1e-6:
        return h
    # exp(80) is still finite in fp32; TRL clamps at the same place.
    return torch.expm1((exponent * h).clamp(max=80.0)) / exponent


_LOSSES: dict[str, Callable[[_Terms, LossSettings], Tensor]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "robust": _robust,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sft": _sft,
    "sigmoid_norm": _sigmoid_norm,
}

LOSS_TYPES: tuple[str, ...] = tuple(_LOSSES)
"""Every loss type, in TRL's order."""
