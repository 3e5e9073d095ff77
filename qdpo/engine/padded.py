"""Separate sequences, padded on the right: for models that a shared prefix does not suit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qdpo.data.pairs import TokenPair
from qdpo.engine.logps import PackScores, head_of, score_tokens, sum_per_sequence


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


def predicting_padded(
    model: nn.Module, pairs: Sequence[TokenPair], device: torch.device, padding: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Run pairs as 2n padded rows.

    Returns:
        (K, H) the states that predict the completion tokens, (K,) the tokens' ids, (K,) the number of each one's
        sequence, chosen first.
    """
    completions = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    prompts = [pair.prompt for pair in pairs] * 2
    # the last token predicts nothing
    sequences = [(prompt + completion)[:-1] for prompt, completion in zip(prompts, completions, strict=True)]
    hidden = hidden_of_padded(model, sequences, device, padding)
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        rows += [number] * len(completion)
        columns += range(len(prompt) - 1, len(prompt) - 1 + len(completion))
        targets += completion
        owner += [number] * len(completion)
    places = hidden[torch.tensor(rows, device=device), torch.tensor(columns, device=device)]
    return places, torch.tensor(targets, device=device), torch.tensor(owner, device=device)


def score_padded(model: nn.Module, pairs: Sequence[TokenPair], device: torch.device, padding: int = 0) -> PackScores:
    """Score pairs as 2n padded rows; everything but the layout is as in a packed row."""
    places, targets, owner = predicting_padded(model, pairs, device, padding)
    scores = score_tokens(places, head_of(model), targets)
    return sum_per_sequence(scores, None, owner, 2 * len(pairs))
