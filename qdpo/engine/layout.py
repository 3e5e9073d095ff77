"""The layout of a packed row: every prompt once, no padding.

A pair is laid out as `prefix | chosen rest | rejected rest`, where the prefix is the prompt and whatever both
completions begin with. Each rest continues the prefix's positions; the last token of each sequence is left out, since
it predicts nothing. Many pairs follow one another in one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from qdpo.data.pairs import TokenPair
from qdpo.data.tokenise import common_prefix
from qdpo.engine.transfer import all_to_device


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens that attend to one prefix and causally to themselves.

    Attributes:
        start: index of its first token in the row.
        length: tokens.
        prefix_start: index of the prefix's first token.
        prefix_length: tokens of the prefix; 0 for a prefix itself.
    """

    start: int
    length: int
    prefix_start: int
    prefix_length: int


@dataclass
class Pack:
    """One packed row of N tokens holding n pairs, S of whose (row, target) places are scored.

    Sequences are numbered 0..n-1 (chosen) and n..2n-1 (rejected).

    Attributes:
        input_ids: (1, N).
        position_ids: (1, N), counted within each sequence.
        segments: in the order of the row; together they cover it.
        rows: (S,) index of the hidden state that predicts a scored token.
        scored_rows: (R,) the same indices, ascending, each once.
        targets: (S,) id of the scored token.
        scored: (K,) index into S of each completion token of each sequence; shared tokens occur twice.
        sequence: (K,) number of the sequence that the token belongs to.
        indices: (n,) number of each pair in its dataset.
        cache: masks and gather indices, made by the attention on first use.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: list[Segment]
    rows: Tensor
    scored_rows: Tensor
    targets: Tensor
    scored: Tensor
    sequence: Tensor
    indices: list[int]
    cache: dict[Any, Any] = field(default_factory=dict)

    @property
    def n_tokens(self) -> int:
        """Tokens in the row."""
        return self.input_ids.shape[1]

    @property
    def n_pairs(self) -> int:
        """Pairs in the row."""
        return len(self.indices)

    def to(self, device: torch.device) -> Pack:
        """The same pack on a device."""
        names = ("input_ids", "position_ids", "rows", "scored_rows", "targets", "scored", "sequence")
        moved = all_to_device([getattr(self, name) for name in names], device)
        fields: dict[str, Any] = dict(zip(names, moved, strict=True))
        return replace(self, **fields, cache={})


def packed_tokens(pair: TokenPair) -> int:
    """Tokens that a pair takes in a packed row."""
    shared = common_prefix(pair.chosen, pair.rejected)
    rests = (len(pair.chosen) - shared, len(pair.rejected) - shared)
    return len(pair.prompt) + shared + sum(max(rest - 1, 0) for rest in rests)


def padded_tokens(pair: TokenPair) -> int:
    """Tokens of the pair as two separate sequences, without any padding."""
    return 2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected)


def build_pack(pairs: Sequence[TokenPair], indices: Sequence[int]) -> Pack:
    """Lay out pairs in one row.

    Args:
        pairs: every prompt has at least one token.
        indices: the pairs' numbers in their dataset.
    """
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    rows: list[int] = []
    targets: list[int] = []
    scored: list[int] = []
    sequence: list[int] = []
    n = len(pairs)

    def score(row: int, target: int, *sequences: int) -> None:
        scored.extend([len(rows)] * len(sequences))
        sequence.extend(sequences)
        rows.append(row)
        targets.append(target)

    for i, pair in enumerate(pairs):
        shared = common_prefix(pair.chosen, pair.rejected)
        prefix = pair.prompt + pair.chosen[:shared]
        start = len(ids)
        ids += prefix
        positions += range(len(prefix))
        segments.append(Segment(start, len(prefix), start, 0))
        for j in range(shared):
            score(start + len(pair.prompt) - 1 + j, pair.chosen[j], i, n + i)
        for number, completion in ((i, pair.chosen[shared:]), (n + i, pair.rejected[shared:])):
            if not completion:
                continue
            begin, body = len(ids), completion[:-1]
            ids += body
            positions += range(len(prefix), len(prefix) + len(body))
            if body:
                segments.append(Segment(begin, len(body), start, len(prefix)))
            # the prefix's last state predicts the first token of either completion
            score(start + len(prefix) - 1, completion[0], number)
            for j in range(1, len(completion)):
                score(begin + j - 1, completion[j], number)

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long)

    return Pack(
        tensor(ids)[None],
        tensor(positions)[None],
        segments,
        tensor(rows),
        tensor(sorted(set(rows))),
        tensor(targets),
        tensor(scored),
        tensor(sequence),
        list(indices),
    )
