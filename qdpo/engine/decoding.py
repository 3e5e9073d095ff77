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
import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

LIKELIEST = 256
"""Tokens that are put in order where they hold the nucleus: a whole vocabulary takes ten times as long."""

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


class Sampler:
    """Draws tokens, each answer's from a stream of random numbers of its own: what it draws does not depend on the
    answers that are written beside it.

    Args:
        temperature: above 0; logits are divided by it.
        top_p: draws from the likeliest tokens that hold this much probability (nucleus, arXiv 1904.09751).
        seeds: of each answer.
    """

    def __init__(self, temperature: float, top_p: float, seeds: Sequence[int]) -> None:
        self.temperature, self.top_p = temperature, top_p
        self._streams = [random.Random(seed) for seed in seeds]

    def __call__(self, numbers: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """A token for each of n answers.

        Args:
            numbers: which answers.
            logits: (n, vocabulary).
        """
        drawn = torch.tensor([self._streams[number].random() for number in numbers], device=logits.device)
        likely = (logits.float() / self.temperature).softmax(-1)
        if likely.shape[-1] <= LIKELIEST:
            return self._draw(*_in_order(likely), drawn)
        candidates = likely.topk(LIKELIEST).indices.sort(-1).values
        ordered, places = _in_order(likely.gather(-1, candidates))
        chosen = self._draw(ordered, candidates.gather(-1, places), drawn)
        # those as likely as the last candidate may be others: where they count, all tokens are put in order
        more = (ordered * (ordered > ordered[:, -1:])).sum(-1) < self.top_p
        if more.any():
            chosen[more] = self._draw(*_in_order(likely[more]), drawn[more])
        return chosen

    def _draw(self, ordered: torch.Tensor, tokens: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """The token at a share of the nucleus: (n, m) likelihoods, falling, and their tokens; (n,) shares, 0 to 1."""
        kept = ordered * (ordered.cumsum(-1) - ordered < self.top_p)
        until = kept.cumsum(-1)
        place = torch.searchsorted(until, drawn[:, None] * until[:, -1:], right=True)
        # the last that was kept, where rounding takes the draw to its very end
        place = place.minimum(kept.count_nonzero(-1)[:, None] - 1)
        return tokens.gather(-1, place)[:, 0]


def _in_order(likely: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest first, of those that are as likely the first; and where they were."""
    ordered, places = likely.sort(dim=-1, descending=True, stable=True)
    return ordered, places


def greedy(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    ends: frozenset[int],
    new_tokens: int,
    advance: Callable[[int], object] = lambda tokens: None,
) -> list[tuple[list[int], bool]]:
    """The likeliest continuations of n prompts; see `sampled`."""
    return _continued(model, prompts, ends, new_tokens, lambda _, logits: logits.argmax(-1), advance)


def sampled(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    ends: frozenset[int],
    new_tokens: int,
    sampler: Sampler,
    advance: Callable[[int], object] = lambda tokens: None,
) -> list[tuple[list[int], bool]]:
    """Continuations of n prompts, token by token and all at once, with a cache where the model has one.

    Prompts are padded on the left, so that every one's next token is predicted in the last column. A model that carries
    a state from token to token, or cannot be told positions, would take padding for text: there it is one by one.

    Args:
        model: the *ForCausalLM, in evaluation mode.
        prompts: their ids.
        ends: ids that end an answer.
        new_tokens: tokens of an answer at the most.
        sampler: chooses them.
        advance: told how many tokens were made, after each step.

    Returns:
        Of each prompt the tokens without the one that ended them, and whether one did.
    """
    return _continued(model, prompts, ends, new_tokens, sampler, advance)


def _continued(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    ends: frozenset[int],
    new_tokens: int,
    choose: Callable[[Sequence[int], torch.Tensor], torch.Tensor],
    advance: Callable[[int], object],
    first: int = 0,
) -> list[tuple[list[int], bool]]:
    known = inspect.signature(model.forward).parameters
    numbers = range(first, first + len(prompts))
    if len(prompts) > 1 and (getattr(model, "_is_stateful", False) or "position_ids" not in known):
        return [
            _continued(model, [prompt], ends, new_tokens, choose, advance, number)[0]
            for number, prompt in zip(numbers, prompts, strict=True)
        ]
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
            tokens, cache = choose(numbers, out.logits[:, -1]), getattr(out, "past_key_values", None)
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
