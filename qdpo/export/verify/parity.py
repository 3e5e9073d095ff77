"""What a model says about held-out pairs and plain texts, and how two models' predictions differ."""

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
from qdpo.export.verify.room import Room
from qdpo.export.verify.scorers import Asked, Scorer
from qdpo.model.stream_memory import CHUNK_BYTES
from qdpo.progress import Progress
from qdpo.run import folder as run_folder

DISTRIBUTIONS_BYTES = 1 << 30
"""Room for a model's distributions, which the per-token KL is computed of."""


@dataclass
class Scores:
    """What one model says about the pairs.

    Attributes:
        engine: what computed it.
        chosen, rejected: sums of log-probabilities of the completions, in nats, float64 [pairs].
        texts: sums of log-probabilities of the plain texts, in nats, float64 [texts].
        distributions: log-probabilities of the next token at the first completion tokens of each side, float32
            [tokens, vocabulary]; most of them may lie in a file.
    """

    engine: str
    chosen: Tensor
    rejected: Tensor
    texts: Tensor
    distributions: Tensor

    @property
    def margins(self) -> Tensor:
        """How much likelier each chosen completion is than the rejected one, in nats, float64 [pairs]."""
        return self.chosen - self.rejected

    def first(self, pairs: int, rows: int) -> Scores:
        """Those of the first pairs, whose distributions are the first `rows`; without texts."""
        return Scores(
            self.engine, self.chosen[:pairs], self.rejected[:pairs], self.texts[:0], self.distributions[:rows]
        )


def completions(pairs: Sequence[TokenPair]) -> list[Asked]:
    """What is asked of a model about pairs: the predictions of each completion, a chosen and a rejected in turn."""
    asked = []
    for pair in pairs:
        for completion in (pair.chosen, pair.rejected):
            start = len(pair.prompt) - 1  # the last token of the prompt predicts the first of the completion
            asked.append(Asked([*pair.prompt, *completion], range(start, start + len(completion))))
    return asked


def questions(heldout: Heldout) -> list[Asked]:
    """What is asked of a model that is verified: the completions of all pairs, then the plain texts."""
    return [*completions(heldout.pairs), *(Asked(ids, range(len(ids) - 1)) for ids in heldout.texts)]


def collect(
    engine: str,
    asked: Sequence[Asked],
    logits: Iterable[tuple[int, Tensor]],
    pairs: int,
    tokens_kept: int,
    room: Room,
) -> Scores:
    """Log-probabilities of all completions and texts.

    Args:
        engine: what computes.
        asked: the completions of pairs, and texts behind them.
        pairs: how many pairs.
        logits: a model's, as `Scorer.logits` gives them.
        tokens_kept: for how many tokens of each completion the whole distribution is kept.
        room: for the distributions.
    """
    last = 2 * pairs
    sums = torch.zeros(len(asked), dtype=torch.float64)
    done = [0] * len(asked)
    distributions, filled = torch.empty(0, 0), 0
    for number, chunk in logits:
        logprobs, positions = chunk.log_softmax(-1), asked[number].positions
        if not filled:
            rows = sum(min(tokens_kept, len(one.positions)) for one in asked[:last])
            distributions = room.take(rows, chunk.shape[1], torch.float32, torch.device("cpu"))
        first = positions.start + done[number] + 1
        taken = torch.tensor(asked[number].ids[first : first + len(chunk)], device=chunk.device)
        sums[number] += logprobs.gather(1, taken.unsqueeze(1)).double().sum().cpu()
        if number < last and (kept := min(tokens_kept - done[number], len(chunk))) > 0:
            distributions[filled : filled + kept] = logprobs[:kept].cpu()
            filled += kept
        done[number] += len(chunk)
    return Scores(engine, sums[:last:2], sums[1:last:2], sums[last:], distributions)


def score(scorer: Scorer, heldout: Heldout, tokens_kept: int, room: Room) -> Scores:
    """What a scorer says about held-out pairs and plain texts; the arguments are those of `collect`."""
    asked = questions(heldout)
    return collect(scorer.engine, asked, scorer.logits(asked), len(heldout.pairs), tokens_kept, room)


def tokens_to_keep(heldout: Heldout, vocabulary: int) -> int:
    """Tokens per completion whose distributions fit `DISTRIBUTIONS_BYTES`."""
    return max(1, DISTRIBUTIONS_BYTES // (vocabulary * 4 * 2 * max(len(heldout.pairs), 1)))


def row(scores: Scores, zero: Scores | None, policy: Scores, text_tokens: int) -> dict[str, Any]:
    """One row of the parity table.

    Args:
        scores: the model of the row.
        zero: what its margins are measured against: the base in the same precision; None where that was not scored.
        policy: what its predictions are measured against.
        text_tokens: predictions in the plain texts.

    Returns:
        engine, accuracy (share of pairs whose margin is above the zero's; None when all are ties), margin (mean gain,
        nats), kl (mean of KL(policy || row), nats per token), kl_max, top1 (share of equal likeliest tokens), tokens
        (how many of them were compared), text (negative log-likelihood of the plain texts, nats per token).
    """
    gained = scores.margins - zero.margins if zero is not None else None
    kl, top1 = per_token(policy, scores)
    return {
        "engine": scores.engine,
        "accuracy": None if gained is None or not gained.any() else float((gained > 0).double().mean()),
        "margin": None if gained is None else float(gained.mean()),
        "kl": float(kl.mean()),
        "kl_max": float(kl.max()),
        "top1": float(top1.double().mean()),
        "tokens": len(kl),
        "text": -float(scores.texts.sum()) / text_tokens if text_tokens else None,
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
