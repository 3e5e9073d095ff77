"""Scoring many pairs without gradients: the reference pass and evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qdpo.data.pairs import TokenPair
from qdpo.engine.fuse import Fusion
from qdpo.engine.layout import Pack, build_pack
from qdpo.engine.logps import PackScores, hidden_of, score_pack
from qdpo.engine.masks import masks_for
from qdpo.engine.microbatch import cut
from qdpo.engine.padded import cut_padded, predicting_padded, score_padded

WAYS = {
    "packed": "shared prompts, no padding",
    "packed_mask": "shared prompts, no padding, one explicit mask",
    "packed_masks": "shared prompts, no padding, one explicit mask per kind of layer",
    "unshared": "separate padded rows",
}
"""How pairs can be laid out, the fastest first."""


@dataclass(frozen=True)
class Predicting:
    """Where the completion tokens of n pairs are predicted.

    Attributes:
        hidden: (S, H) the states that predict them.
        targets: (S,) their ids.
        scored: (K,) index into S of each sequence's tokens, see `Pack`; None for all S in order.
        sequence: (K,) number of the sequence, chosen first.
    """

    hidden: Tensor
    targets: Tensor
    scored: Tensor | None
    sequence: Tensor


@dataclass(frozen=True)
class Engine:
    """A causal language model whose attention is installed, and how to run it.

    Attributes:
        model: the *ForCausalLM (adapters injected or not).
        device: where it is.
        autocast: makes the context of a forward pass (mixed precision or none).
        way: how pairs are laid out, see `WAYS`; `qdpo.engine.probe` decides it.
        fusion: which of its modules run as single functions.
    """

    model: nn.Module
    device: torch.device
    autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    way: str = "packed"
    fusion: Fusion = field(default_factory=Fusion)

    def score(self, pairs: Sequence[TokenPair], indices: Sequence[int]) -> PackScores:
        """Score pairs in one pass; carries gradients where they are enabled."""
        with self.autocast():
            if self.way == "unshared":
                return score_padded(self.model, pairs, self.device)
            return score_pack(self.model, *self._pack(pairs, indices))

    def predicting(self, pairs: Sequence[TokenPair], indices: Sequence[int]) -> Predicting:
        """What `score` scores, one step earlier: for whoever needs more of the distributions than sums."""
        with self.autocast():
            if self.way == "unshared":
                hidden, targets, sequence = predicting_padded(self.model, pairs, self.device)
                return Predicting(hidden, targets, None, sequence)
            pack, mask = self._pack(pairs, indices)
            hidden = hidden_of(self.model, pack, mask).index_select(0, pack.rows)
            return Predicting(hidden, pack.targets, pack.scored, pack.sequence)

    def _pack(
        self, pairs: Sequence[TokenPair], indices: Sequence[int]
    ) -> tuple[Pack, Tensor | dict[str, Tensor] | None]:
        """The packed row, and the mask where the way needs one."""
        pack = build_pack(pairs, indices).to(self.device)
        if self.way == "packed":
            return pack, None
        return pack, masks_for(self.model, pack, by_layer_type=self.way == "packed_masks")

    def cut(self, pairs: Sequence[TokenPair], budget: int) -> list[list[int]]:
        """Group pairs into passes of up to `budget` tokens; positions in `pairs`."""
        return cut_padded(pairs, budget) if self.way == "unshared" else cut(pairs, budget)

    def score_all(self, pairs: Sequence[TokenPair], budget: int) -> PackScores:
        """Score all pairs without gradients, in packs of up to `budget` tokens.

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
