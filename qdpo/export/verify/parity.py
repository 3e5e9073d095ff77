"""Does the artefact prefer what the trained model prefers, token by token and pair by pair; and is that enough?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qdpo.config.schema import VerifySection
from qdpo.data.pairs import TokenPair
from qdpo.errors import QdpoError
from qdpo.export.pairs import Heldout
from qdpo.export.source import TrainedRun
from qdpo.export.verify.checks import Check
from qdpo.export.verify.room import Room
from qdpo.export.verify.scorers import Asked, Scorer
from qdpo.model.stream_memory import CHUNK_BYTES
from qdpo.progress import Progress
from qdpo.run import folder as run_folder

PARITY = "preference parity"
DISTRIBUTIONS_BYTES = 1 << 30
"""Room for a model's distributions, which the per-token KL is computed of."""


@dataclass
class Scores:
    """What one model says about the pairs.

    Attributes:
        engine: what computed it.
        chosen, rejected: sums of log-probabilities of the completions, in nats, float64 [pairs].
        distributions: log-probabilities of the next token at the first completion tokens of each side, float32
            [tokens, vocabulary]; most of them may lie in a file.
    """

    engine: str
    chosen: Tensor
    rejected: Tensor
    distributions: Tensor


def completions(pairs: Sequence[TokenPair]) -> list[Asked]:
    """What is asked of a model about pairs: the predictions of each completion, a chosen and a rejected in turn."""
    asked = []
    for pair in pairs:
        for completion in (pair.chosen, pair.rejected):
            start = len(pair.prompt) - 1  # the last token of the prompt predicts the first of the completion
            asked.append(Asked([*pair.prompt, *completion], range(start, start + len(completion))))
    return asked


def collect(
    engine: str, asked: Sequence[Asked], logits: Iterable[tuple[int, Tensor]], tokens_kept: int, room: Room
) -> Scores:
    """Log-probabilities of all completions.

    Args:
        engine: what computes.
        asked: from `completions`.
        logits: a model's, as `Scorer.logits` gives them.
        tokens_kept: for how many tokens of each completion the whole distribution is kept.
        room: for the distributions.
    """
    sums = torch.zeros(len(asked), dtype=torch.float64)
    done = [0] * len(asked)
    distributions, filled = torch.empty(0, 0), 0
    for number, chunk in logits:
        logprobs, positions = chunk.log_softmax(-1), asked[number].positions
        if not filled:
            rows = sum(min(tokens_kept, len(one.positions)) for one in asked)
            distributions = room.take(rows, chunk.shape[1], torch.float32, torch.device("cpu"))
        first = positions.start + done[number] + 1
        taken = torch.tensor(asked[number].ids[first : first + len(chunk)], device=chunk.device)
        sums[number] += logprobs.gather(1, taken.unsqueeze(1)).double().sum().cpu()
        if (kept := min(tokens_kept - done[number], len(chunk))) > 0:
            distributions[filled : filled + kept] = logprobs[:kept].cpu()
            filled += kept
        done[number] += len(chunk)
    return Scores(engine, sums[::2], sums[1::2], distributions)


def score(scorer: Scorer, pairs: Sequence[TokenPair], tokens_kept: int, room: Room) -> Scores:
    """What a scorer says about pairs; the arguments are those of `collect`."""
    asked = completions(pairs)
    return collect(scorer.engine, asked, scorer.logits(asked), tokens_kept, room)


def tokens_to_keep(heldout: Heldout, vocabulary: int) -> int:
    """Tokens per completion whose distributions fit `DISTRIBUTIONS_BYTES`."""
    return max(1, DISTRIBUTIONS_BYTES // (vocabulary * 4 * 2 * max(len(heldout.pairs), 1)))


def margins(scores: Scores, reference: Scores) -> Tensor:
    """Implicit reward margins over beta, in nats: how much more than the reference it prefers the chosen one."""
    return (scores.chosen - reference.chosen) - (scores.rejected - reference.rejected)


def compare(scores: Scores, trained: Scores, reference: Scores) -> dict[str, Any]:
    """One row of the parity table.

    Args:
        scores: the model of the row.
        trained: the trained policy.
        reference: the base that rewards are measured against.

    Returns:
        accuracy (share of pairs with a positive margin; None when all are ties, as for the base itself), margin (mean,
        nats), margin_kept (share of the trained margin), kl (mean of KL(trained || row), nats per token), kl_max, top1
        (share of equal likeliest tokens), tokens (how many of them were compared), engine.
    """
    own, whole = margins(scores, reference), margins(trained, reference)
    kl, top1 = per_token(trained, scores)
    mean = float(whole.mean())
    return {
        "engine": scores.engine,
        "accuracy": float((own > 0).double().mean()) if own.any() else None,
        "margin": float(own.mean()),
        "margin_kept": float(own.mean()) / mean if mean else None,
        "kl": float(kl.mean()),
        "kl_max": float(kl.max()),
        "top1": float(top1.double().mean()),
        "tokens": len(kl),
    }


def per_token(p: Scores, q: Scores) -> tuple[Tensor, Tensor]:
    """KL(p || q) in nats, and whether the likeliest tokens are equal, both [tokens]."""
    kls, agree = [], []
    rows = max(1, CHUNK_BYTES // (8 * max(p.distributions.shape[1], 1)))
    with Progress("comparing distributions", len(p.distributions), unit="tokens") as progress:
        for one, other in zip(p.distributions.split(rows), q.distributions.split(rows), strict=True):
            first, second = one.double(), other.double()
            agree.append(first.argmax(-1) == second.argmax(-1))
            kls.append((first.exp() * (first - second)).sum(-1))
            progress.advance(len(one))
    return torch.cat(kls).clamp(min=0), torch.cat(agree)


def limits_of(run: TrainedRun) -> VerifySection:
    """The limits of the run's preset (`verify` in its configuration); the schema's own where that cannot be read."""
    try:
        return run_folder.reopen(run.folder).config.verify
    except QdpoError:
        return VerifySection()


def judge(kind: str, limits: VerifySection, row: dict[str, Any], against: str) -> Check:
    """Hold a parity row against the limits.

    Args:
        kind: precision of the artefact.
        limits: of the run.
        row: what `compare` gave.
        against: what the KL was measured against.
    """
    told = describe(row, against)
    failures = []
    limit, least = limits.max_kl.get(kind), limits.min_margin_kept.get(kind)
    if limit is not None and not row["kl"] <= limit:
        failures.append(f"the KL limit of {kind} is {limit:g}")
    if least is not None and row["margin_kept"] is not None and not row["margin_kept"] >= least:
        failures.append(f"{least:.0%} of the margin must be kept")
    if failures:
        return Check(PARITY, False, f"{told}; {'; '.join(failures)}")
    without = limit is None and least is None
    return Check(PARITY, True, told + (" (no limit for this precision)" if without else ""))


def describe(row: dict[str, Any], against: str) -> str:
    """A parity row as a sentence."""
    kept = "no trained margin" if row["margin_kept"] is None else f"{row['margin_kept']:.1%} of the margin kept"
    accuracy = "ties" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
    return (
        f"KL {row['kl']:.2g} nats a token against {against}, top-1 {row['top1']:.1%}, accuracy {accuracy}, "
        f"{kept}, by {row['engine']}"
    )
