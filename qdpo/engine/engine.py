"""The engine: a model whose attention is installed, and the passes that are run through it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qdpo.data.pairs import TokenPair
from qdpo.engine.fuse import Fusion
from qdpo.engine.layouts import Layout, Packed, Predicting, scores_of
from qdpo.engine.logps import PackScores

Pass = Callable[[list[int], PackScores], Tensor]
"""Makes the loss of one micro-batch, a scalar, from the positions of its pairs and their scores."""


@dataclass(frozen=True)
class Engine:
    """A causal language model and how to run it; `qdpo.engine.attach` makes one.

    Attributes:
        model: the *ForCausalLM (adapters injected or not), its attention as `layout` needs it.
        device: where it is.
        autocast: makes the context of a forward pass (mixed precision or none).
        layout: how pairs are laid out.
        fusion: which of its modules run as single functions.
        own: the attention implementation that the model came with.
    """

    model: nn.Module
    device: torch.device
    autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    layout: Layout = field(default_factory=Packed)
    fusion: Fusion = field(default_factory=Fusion)
    own: str = "sdpa"

    def score(self, pairs: Sequence[TokenPair], indices: Sequence[int]) -> PackScores:
        """Score n pairs in one pass: their 2n sequences, chosen first; carries gradients where they are enabled.

        Args:
            pairs: what to score.
            indices: their numbers in the dataset.
        """
        with self.autocast():
            found = self.layout.predicting(self.model, pairs, indices, self.device)
            return scores_of(self.model, found, 2 * len(pairs))

    def predicting(self, pairs: Sequence[TokenPair], indices: Sequence[int]) -> Predicting:
        """What `score` scores, one step earlier: for whoever needs more of the distributions than sums."""
        with self.autocast():
            return self.layout.predicting(self.model, pairs, indices, self.device)

    def tokens(self, pairs: Sequence[TokenPair], budget: int) -> int:
        """Tokens of all passes over the pairs."""
        return sum(self.layout.tokens([pairs[i] for i in group]) for group in self.cut(pairs, budget))

    def cut(self, pairs: Sequence[TokenPair], budget: int) -> list[list[int]]:
        """Group pairs into passes of up to `budget` tokens; positions in `pairs`."""
        return self.layout.cut(pairs, budget)

    def step(
        self,
        pairs: Sequence[TokenPair],
        groups: Sequence[list[int]],
        loss_of: Pass,
        backward: Callable[[Tensor], object] = Tensor.backward,
    ) -> None:
        """Forward and backward over pairs, one micro-batch after the other; gradients add up.

        Args:
            pairs: of one optimizer step.
            groups: its micro-batches, as positions in `pairs`.
            loss_of: called between a micro-batch's forward and backward pass.
            backward: how a loss is back-propagated.
        """
        for group in groups:
            backward(loss_of(group, self.score([pairs[i] for i in group], group)))

    def score_all(
        self, pairs: Sequence[TokenPair], budget: int, advance: Callable[[int], object] = lambda tokens: None
    ) -> PackScores:
        """Score all pairs without gradients, in passes of up to `budget` tokens.

        Args:
            pairs: what to score.
            budget: tokens of a pass.
            advance: told how many tokens each pass had.

        Returns:
            The scores of all 2n sequences, chosen first, in the order of `pairs`, on the CPU.
        """
        n = len(pairs)
        columns: list[Tensor] = [torch.zeros(2, n) for _ in range(5)]
        with torch.no_grad(), evaluating(self.model):
            for group in self.cut(pairs, budget):
                scores = self.score([pairs[i] for i in group], group)
                parts = (scores.logps, scores.tokens, scores.logits, scores.entropy, scores.top1)
                for column, part in zip(columns, parts, strict=True):
                    column[:, group] = part.view(2, -1).to("cpu", column.dtype)
                advance(self.layout.tokens([pairs[i] for i in group]))
        return PackScores(*(column.view(-1) for column in columns))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while (no dropout, no recomputation), then back."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


def text_nll(engine: Engine, texts: Sequence[list[int]], budget: int) -> float:
    """Mean negative log-likelihood of plain texts, in nats per token.

    Args:
        engine: the model.
        texts: ids of each text, BOS first.
        budget: tokens per pass.
    """
    return nll(engine.score_all(text_pairs(texts), budget))


def text_pairs(texts: Sequence[list[int]]) -> list[TokenPair]:
    """Texts as pairs whose two completions are the same: all of it is shared, and computed once."""
    return [TokenPair(i, ids[:1], ids[1:], ids[1:]) for i, ids in enumerate(texts)]


def nll(scores: PackScores) -> float:
    """Mean negative log-likelihood of everything that was scored, in nats per token."""
    return -float(scores.logps.sum() / scores.tokens.sum())
