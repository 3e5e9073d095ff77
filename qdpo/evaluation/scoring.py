"""What base and policy say of preference pairs: log-probabilities, and how far apart their distributions are.

The divergence is KL(policy || base) of the next token, exact over the vocabulary, at every place of the given
completions, summed over a completion: the Rao-Blackwellised form of the usual estimator (Amini, Vieira and Cotterell,
"Better Estimation of the KL Divergence Between Language Models", arXiv:2504.10637, eq. for the step-wise sum), which
is never negative. The places are those of the dataset's completions, not of samples drawn from the policy: it says how
far training has moved the model where the data is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from qdpo.data.pairs import TokenPair
from qdpo.engine.engine import Engine, Predicting, evaluating
from qdpo.engine.logps import Head, head_of, logits_of, score_tokens, sum_per_sequence
from qdpo.errors import UnavailableError

LOGITS_AT_ONCE = 1 << 23
"""Logits of each model that are held at a time: 33 MB in fp32."""

Side = Callable[[], AbstractContextManager[object]]
"""Makes the context in which the model is the base, or the policy."""


@dataclass(frozen=True)
class PairScores:
    """What is known of n pairs; columns are chosen and rejected.

    Attributes:
        base: (n, 2) fp64 log-probabilities of the completions under the base (the reference), in nats.
        policy: (n, 2) fp64 the same under the policy; equal to `base` where there is no adapter.
        tokens: (n, 2) completion tokens.
        kl: (n, 2) fp64 KL(policy || base), summed over the places of the completion, nats; zeros without an adapter.
    """

    base: Tensor
    policy: Tensor
    tokens: Tensor
    kl: Tensor


def score_pairs(
    engine: Engine,
    pairs: Sequence[TokenPair],
    budget: int,
    base: Side,
    policy: Side | None,
    advance: Callable[[int], None] = lambda pairs: None,
) -> PairScores:
    """Score pairs by base and policy, pass by pass.

    Args:
        engine: the model.
        pairs: what to score.
        budget: tokens of a pass.
        base: the model as the base.
        policy: the model as the policy; None scores the base only.
        advance: told how many pairs each pass had.

    Raises:
        UnavailableError: a pass does not fit the GPU's memory.
    """
    n = len(pairs)
    columns = [torch.zeros(2, n, dtype=torch.float64) for _ in range(4)]
    with torch.no_grad(), evaluating(engine.model):
        for group in engine.cut(pairs, budget):
            try:
                parts = _score_group(engine, [pairs[i] for i in group], group, base, policy)
            except torch.OutOfMemoryError as error:
                raise UnavailableError(
                    f"the GPU has no memory for a pass of {budget:,} tokens",
                    f"lower it: --set packing.tokens_without_grad={max(budget // 2, 1)}",
                ) from error
            for column, part in zip(columns, parts, strict=True):
                column[:, group] = part.view(2, -1).to("cpu", torch.float64)
            advance(len(group))
    first, second, tokens, kl = (column.T.contiguous() for column in columns)
    return PairScores(first, second, tokens, kl)


def _score_group(
    engine: Engine, pairs: Sequence[TokenPair], indices: Sequence[int], base: Side, policy: Side | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(2m,) log-probabilities under base and policy, tokens and KL of one pass's m pairs, chosen first."""
    head, count = head_of(engine.model), 2 * len(pairs)
    with base():
        before = engine.predicting(pairs, indices)
        first = _sums(before, head, count)
    if policy is None:
        return first[0], first[0], first[1], torch.zeros_like(first[0])
    with policy():
        after = engine.predicting(pairs, indices)
        second = _sums(after, head, count)
    kl = token_kl((after.hidden, policy), (before.hidden, base), head)
    kl = kl if after.scored is None else kl[after.scored]
    summed = torch.zeros(count, dtype=kl.dtype, device=kl.device).index_add(0, after.sequence, kl)
    return first[0], second[0], first[1], summed


def _sums(found: Predicting, head: Head, count: int) -> tuple[Tensor, Tensor]:
    """(count,) log-probabilities and tokens of each sequence."""
    scores = sum_per_sequence(score_tokens(found.hidden, head, found.targets), found.scored, found.sequence, count)
    return scores.logps, scores.tokens


def token_kl(policy: tuple[Tensor, Side], base: tuple[Tensor, Side], head: Head) -> Tensor:
    """KL(policy || base) of the next token at each place, exact over the vocabulary.

    Args:
        policy, base: (S, H) hidden states of each, and the context in which the model is it.
        head: the output projection; one that is trained itself is run in that context.

    Returns:
        (S,) fp32, nats.
    """
    rows = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    values = []
    for begin in range(0, len(policy[0]), rows):
        p, q = (_log_probabilities(hidden[begin : begin + rows], head, side) for hidden, side in (policy, base))
        values.append((p.exp() * (p - q)).sum(-1).clamp(min=0))
    return torch.cat(values) if values else policy[0].new_zeros(0, dtype=torch.float32)


def _log_probabilities(hidden: Tensor, head: Head, side: Side) -> Tensor:
    # as qdpo.engine.logps computes logits: factors in the head's own type, sums in at least fp32
    with torch.autocast(hidden.device.type, enabled=False):
        if head.trained is not None:
            with side():
                logits = head.trained(hidden).float()
        else:
            dtype = head.weight.dtype
            logits = logits_of(hidden.to(dtype), head.weight, torch.promote_types(dtype, torch.float32)).float()
            if head.bias is not None:
                logits += head.bias
        logits = logits * head.scale
        if head.softcap is not None:
            logits = torch.tanh(logits / head.softcap) * head.softcap
        return logits.log_softmax(-1)
