"""Decoding token by token, which a frozen 4-bit layer is told of: its weights are then read as they are stored.

A dequantized weight is written and read again, 16 bits each, where 4 are stored: for the few rows of a token that is
all the time it takes. bitsandbytes has a product that reads the 4 bits (`gemm_4bit`) and takes it by rows, shape, type
and card, on every card for up to four rows (`_gemm_4bit_use_custom_cuda` in its backends/cuda/ops.py). It rounds
otherwise, so nothing that is compared with a training pass may take it. Neither the number of rows nor the mode of
autograd would tell: a pass of the reference may have few, and gradients are off inside of every fused function.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

_decoding = False


def is_decoding() -> bool:
    """Whether the code that asks runs within `decoding`."""
    return _decoding


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """Passes of a model that writes, without gradients, compared with no other pass."""
    global _decoding
    before, _decoding = _decoding, True
    try:
        with torch.no_grad():
            yield
    finally:
        _decoding = before


def rows_at_once(rows: int, prompt: int, new_tokens: int, budget: int) -> int:
    """How many prompts are answered as one batch: as many as have no more than `budget` tokens in their cache.

    Args:
        rows: prompts there are.
        prompt: tokens of the longest.
        new_tokens: tokens of an answer at the most.
        budget: tokens of a pass without gradients, packing.tokens_without_grad.
    """
    return max(1, min(rows, budget // (prompt + new_tokens)))


def greedy(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    ends: frozenset[int],
    new_tokens: int,
    advance: Callable[[int], object] = lambda tokens: None,
) -> list[tuple[list[int], bool]]:
    """The likeliest continuations of n prompts, token by token and all at once, with a cache where the model has one.

    Prompts are padded on the left, so that every one's next token is predicted in the last column. A model that carries
    a state from token to token, or cannot be told positions, would take padding for text: there it is one by one.

    Args:
        model: the *ForCausalLM, in evaluation mode.
        prompts: their ids.
        ends: ids that end an answer.
        new_tokens: tokens of an answer at the most.
        advance: told how many tokens were made, after each step.

    Returns:
        Of each prompt the tokens without the one that ended them, and whether one did.
    """
    known = inspect.signature(model.forward).parameters
    if len(prompts) > 1 and (getattr(model, "_is_stateful", False) or "position_ids" not in known):
        return [greedy(model, [prompt], ends, new_tokens, advance)[0] for prompt in prompts]
    device, width = next(model.parameters()).device, max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    made: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    step, cache = ids, None
    with decoding():
        for _ in range(new_tokens):
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -step.shape[1] :]
            settings = {"position_ids": positions, "logits_to_keep": 1}
            settings = {name: value for name, value in settings.items() if name in known}
            out = model(input_ids=step, attention_mask=mask, past_key_values=cache, use_cache=True, **settings)
            tokens, cache = out.logits[:, -1].argmax(-1), getattr(out, "past_key_values", None)
            for number, token in enumerate(tokens.tolist()):
                # an answer that has ended goes along with the others, and nobody looks at it
                ended[number] = ended[number] or token in ends
                if not ended[number]:
                    made[number].append(token)
            advance(len(prompts))
            if all(ended):
                break
            ids = torch.cat([ids, tokens[:, None]], 1)
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], 1)
            step = tokens[:, None] if cache is not None else ids
    return list(zip(made, ended, strict=True))
