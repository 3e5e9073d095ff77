"""The three ways to lay pairs out for a model: each cuts pairs into passes, counts a pass's tokens, and runs one.

`Packed` is the fastest: one row without padding, every prompt once, for models whose attention can be exchanged.
`Masked` is the same row under an explicit mask, for those that take a mask but keep their own attention. `Separate` is
2n padded rows, which suit every model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qdpo.data.pairs import TokenPair
from qdpo.engine.layout import Pack, build_pack, packed_tokens
from qdpo.engine.logps import PackScores, head_of, hidden_of, score_tokens, sum_per_sequence
from qdpo.engine.masks import masks_for
from qdpo.engine.sizes import first_fit


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


class Layout(Protocol):
    """How pairs are laid out.

    Attributes:
        name: as run.json has it.
        words: the same in words.
    """

    @property
    def name(self) -> str: ...
    @property
    def words(self) -> str: ...

    def cut(self, pairs: Sequence[TokenPair], budget: int) -> list[list[int]]:
        """Group pairs into passes of up to `budget` tokens, except a single pair that exceeds it; positions."""

    def tokens(self, pairs: Sequence[TokenPair]) -> int:
        """Tokens of one pass over the pairs, as `cut` counts them."""

    def predicting(
        self, model: nn.Module, pairs: Sequence[TokenPair], indices: Sequence[int], device: torch.device
    ) -> Predicting:
        """Run pairs through a *ForCausalLM; `indices` are their numbers in the dataset."""


@dataclass(frozen=True)
class Packed:
    """One row, its attention by `qdpo.engine.attention` or by the variable-length kernel."""

    @property
    def name(self) -> str:
        """As run.json has it."""
        return "packed"

    @property
    def words(self) -> str:
        """In words."""
        return "shared prompts, no padding"

    def mask(self, model: nn.Module, pack: Pack) -> Tensor | dict[str, Tensor] | None:
        """What a pass is given beside the row."""
        return None

    def cut(self, pairs: Sequence[TokenPair], budget: int) -> list[list[int]]:
        """See `cut_packed`."""
        return cut_packed(pairs, budget)

    def tokens(self, pairs: Sequence[TokenPair]) -> int:
        """Each prompt once."""
        return sum(map(packed_tokens, pairs))

    def predicting(
        self, model: nn.Module, pairs: Sequence[TokenPair], indices: Sequence[int], device: torch.device
    ) -> Predicting:
        """See `Layout`."""
        pack = build_pack(pairs, indices).to(device)
        hidden = hidden_of(model, pack, self.mask(model, pack)).index_select(0, pack.rows)
        return Predicting(hidden, pack.targets, pack.scored, pack.sequence)


@dataclass(frozen=True)
class Masked(Packed):
    """The same row under an explicit mask.

    Attributes:
        by_layer_type: one mask per kind of layer, where windows and full attention mix.
    """

    by_layer_type: bool = False

    @property
    def name(self) -> str:
        """As run.json has it."""
        return "packed_masks" if self.by_layer_type else "packed_mask"

    @property
    def words(self) -> str:
        """In words."""
        return f"{super().words}, one explicit mask{' per kind of layer' if self.by_layer_type else ''}"

    def mask(self, model: nn.Module, pack: Pack) -> Tensor | dict[str, Tensor]:
        """See `masks_for`."""
        return masks_for(model, pack, by_layer_type=self.by_layer_type)


@dataclass(frozen=True)
class Separate:
    """Separate sequences, padded on the right: for models that a shared prefix does not suit."""

    @property
    def name(self) -> str:
        """As run.json has it."""
        return "unshared"

    @property
    def words(self) -> str:
        """In words."""
        return "separate padded rows"

    def cut(self, pairs: Sequence[TokenPair], budget: int) -> list[list[int]]:
        """See `cut_padded`."""
        return cut_padded(pairs, budget)

    def tokens(self, pairs: Sequence[TokenPair]) -> int:
        """Padding included."""
        return 2 * len(pairs) * max(map(longest, pairs))

    def predicting(
        self,
        model: nn.Module,
        pairs: Sequence[TokenPair],
        indices: Sequence[int],
        device: torch.device,
        padding: int = 0,
    ) -> Predicting:
        """See `Layout`; `padding` are columns beyond the longest sequence."""
        completions = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        prompts = [pair.prompt for pair in pairs] * 2
        # the last token predicts nothing
        sequences = [(prompt + completion)[:-1] for prompt, completion in zip(prompts, completions, strict=True)]
        hidden = hidden_of_padded(model, sequences, device, padding)
        rows: list[int] = []
        columns: list[int] = []
        targets: list[int] = []
        for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            rows += [number] * len(completion)
            columns += range(len(prompt) - 1, len(prompt) - 1 + len(completion))
            targets += completion
        owner = torch.tensor(rows, device=device)
        places = hidden[owner, torch.tensor(columns, device=device)]
        return Predicting(places, torch.tensor(targets, device=device), None, owner)


def scores_of(model: nn.Module, found: Predicting, count: int) -> PackScores:
    """The scores of `count` sequences from where their tokens are predicted."""
    tokens = score_tokens(found.hidden, head_of(model), found.targets)
    return sum_per_sequence(tokens, found.scored, found.sequence, count)


# ------------------------------------------------------------------------------------------------------------- cutting


def cut_packed(pairs: Sequence[TokenPair], budget: int) -> list[list[int]]:
    """Group pairs so that no group exceeds the budget, except a single pair that does so alone, see `first_fit`.

    Args:
        pairs: what to group.
        budget: packed tokens per group.

    Returns:
        Groups of positions in `pairs`, the group with the longest pair first.
    """
    return first_fit([packed_tokens(pair) for pair in pairs], budget)


def longest(pair: TokenPair) -> int:
    """Tokens of the longer of a pair's two sequences."""
    return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))


def cut_padded(pairs: Sequence[TokenPair], budget: int) -> list[list[int]]:
    """Group pairs of similar length so that no group's padded rows exceed the budget, except a single pair's.

    Args:
        pairs: what to group.
        budget: tokens per group, padding included.

    Returns:
        Groups of positions in `pairs`, the longest pairs first.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(pairs)), key=lambda i: (-longest(pairs[i]), i)):
        if groups and 2 * (len(groups[-1]) + 1) * longest(pairs[groups[-1][0]]) <= budget:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def hidden_of_padded(
    model: nn.Module, sequences: Sequence[list[int]], device: torch.device, padding: int = 0
) -> Tensor:
    """(n, longest + padding, H) last hidden states of separate sequences, by the model's own attention.

    Args:
        model: the *ForCausalLM.
        sequences: n lists of ids.
        device: where the model is.
        padding: columns beyond the longest sequence.
    """
    width = max(map(len, sequences)) + padding
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for number, sequence in enumerate(sequences):
        ids[number, : len(sequence)] = torch.tensor(sequence)
        mask[number, : len(sequence)] = 1
    backbone: Any = model.base_model
    return backbone(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).last_hidden_state
