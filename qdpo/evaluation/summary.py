"""From scores of pairs to what they mean: accuracies, margins and shifts, each with its interval, in one JSON object.

The object (`RUN/evaluation/heldout.json`, `RUN/evaluation/pairs-NAME.json`):

    schema            1
    kind              heldout: the run's own held-out pairs; pairs: those of `--pairs`
    created, qdpo     when, and by which version
    model             base, revision, weights_sha256, quantization, dtype, device, engine; with an adapter also adapter,
                      adapter_sha256, reference (what rewards are measured against)
    data              source, pairs, prompts (different ones), fingerprint, template
    beta              of the rewards, 1/nats
    length            chosen_tokens, rejected_tokens (means), longer_preferred (share of pairs of unequal length whose
                      chosen side is the longer one), margin_correlation (Pearson: margin, difference in length)
    groups            all, length_matched, chosen_longer, chosen_shorter; null where a group has no pair. Each:
      pairs           how many
      prefers_chosen  share of pairs whose chosen side has the higher log-probability: base, policy, gained, lost,
                      p_value (McNemar exact); without an adapter base only
      reward_accuracy share of pairs whose reward margin is above 0 (the base itself has only ties)
      reward_margin   mean of beta * ((policy - base) chosen - (policy - base) rejected)
      logps_per_token chosen, rejected: base, policy (nats per token), change
      kl_per_token    chosen, rejected: KL(policy || base), nats per token, see `qdpo.evaluation.scoring`

Values with an interval are {value, low, high}: Wilson for shares, percentile bootstrap over pairs for means, 95 %.
A group is length-matched when the longer completion has at most 10 % more tokens than the shorter one (or one token
more): what is preferred there is not length.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qdpo.evaluation.scoring import PairScores
from qdpo.evaluation.statistics import bootstrap_ratios, compare_shares, correlation, wilson

MATCHED = 0.10
"""By how much, relative to the shorter one, the longer completion of a length-matched pair may be longer."""

SIDES = ("chosen", "rejected")


def summarise(scores: PairScores, beta: float, *, adapted: bool) -> dict[str, Any]:
    """`beta`, `length` and `groups` of the object above.

    Args:
        scores: of n pairs.
        beta: of the rewards.
        adapted: whether there is a policy besides the base.
    """
    chosen, rejected = scores.tokens.numpy().T
    groups = {
        "all": np.ones(len(chosen), bool),
        "length_matched": length_matched(chosen, rejected),
        "chosen_longer": chosen > rejected,
        "chosen_shorter": chosen < rejected,
    }
    unequal = int((chosen != rejected).sum())
    longer = wilson(int((chosen > rejected).sum()), unequal).as_dict() if unequal else None
    return {
        "beta": beta,
        "length": {
            "chosen_tokens": float(chosen.mean()),
            "rejected_tokens": float(rejected.mean()),
            "longer_preferred": longer,
            "margin_correlation": correlation(margins(scores, beta), chosen - rejected) if adapted else None,
        },
        "groups": {name: _group(scores, beta, mask, adapted) for name, mask in groups.items()},
    }


def length_matched(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """Which pairs have completions of about the same length.

    Args:
        chosen, rejected: (n,) tokens.
    """
    shorter, longer = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
    return longer - shorter <= np.maximum(1, MATCHED * shorter)


def margins(scores: PairScores, beta: float) -> np.ndarray:
    """(n,) reward margins."""
    change = (scores.policy - scores.base).numpy()
    return beta * (change[:, 0] - change[:, 1])


def _group(scores: PairScores, beta: float, mask: np.ndarray, adapted: bool) -> dict[str, Any] | None:
    n = int(mask.sum())
    if not n:
        return None
    base, policy = scores.base.numpy()[mask], scores.policy.numpy()[mask]
    tokens, kl = scores.tokens.numpy()[mask], scores.kl.numpy()[mask]
    right = base[:, 0] > base[:, 1]
    logps: dict[str, dict[str, Any]] = {side: {"base": _per_token(base, tokens, i)} for i, side in enumerate(SIDES)}
    if not adapted:
        return {
            "pairs": n,
            "prefers_chosen": {"base": wilson(int(right.sum()), n).as_dict()},
            "logps_per_token": logps,
        }
    margin = margins(scores, beta)[mask]
    totals, weights = (np.column_stack(parts) for parts in ((margin, policy - base, kl), (np.ones(n), tokens, tokens)))
    mean, *shifts = (estimate.as_dict() for estimate in bootstrap_ratios(totals, weights))
    for i, side in enumerate(SIDES):
        logps[side] |= {"policy": _per_token(policy, tokens, i), "change": shifts[i]}
    return {
        "pairs": n,
        "prefers_chosen": compare_shares(right, policy[:, 0] > policy[:, 1]),
        "reward_accuracy": wilson(int((margin > 0).sum()), n).as_dict(),
        "reward_margin": mean,
        "logps_per_token": logps,
        "kl_per_token": dict(zip(SIDES, shifts[2:], strict=True)),
    }


def _per_token(logps: np.ndarray, tokens: np.ndarray, side: int) -> float:
    return float(logps[:, side].sum() / tokens[:, side].sum())
