"""Answering a conversation, by the result of a run or by its base."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Thread
from typing import Any

from qdpo import console
from qdpo.data.pairs import Message
from qdpo.data.tokenise import Tokeniser
from qdpo.run.trained import Trained


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: tokens of an answer at the most.
        temperature: 0 takes the likeliest token, above 0 samples.
        top_p: samples from the likeliest tokens that hold this much probability.
        seed: seed of the sampling.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int


def _tokeniser(trained: Trained) -> Tokeniser:
    """What is typed is text: it never becomes a special token."""
    limits = trained.config.data
    return Tokeniser(trained.tokenizer, trained.template, limits.max_length, limits.max_prompt_length, "split")


def note_special_text(trained: Trained, said: str) -> None:
    """Say so where a message spells out a special token, which is sent as text."""
    marks = _tokeniser(trained).marks
    if found := marks.first(Message("user", said)):
        console.note(f"the message contains the text of {marks.named[found[0]]}, which is sent as text")


def answer(
    trained: Trained, conversation: Sequence[Message], sampling: Sampling, *, base: bool = False
) -> Iterator[str]:
    """The next assistant message, piece by piece.

    Args:
        trained: the model.
        conversation: ends with a user message; text in it that spells out special tokens is encoded as text.
        sampling: how tokens are chosen.
        base: let the base answer (adapters disabled) instead of the result.
    """
    import torch
    from transformers import TextIteratorStreamer

    ids = _tokeniser(trained).prompt(conversation)
    ends = trained.template.end_of_turn or {trained.tokenizer.eos_token_id}
    choice: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        choice = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
    streamer = TextIteratorStreamer(trained.tokenizer, skip_prompt=True, skip_special_tokens=True)
    inputs = torch.tensor([ids], device=trained.device.torch)
    failure: list[BaseException] = []

    def generate() -> None:
        context = trained.policy.disable_adapter() if base else contextlib.nullcontext()
        try:
            torch.manual_seed(sampling.seed)
            with torch.no_grad(), context:
                trained.policy.generate(
                    input_ids=inputs,
                    attention_mask=torch.ones_like(inputs),
                    max_new_tokens=sampling.max_new_tokens,
                    eos_token_id=sorted(ends),
                    pad_token_id=trained.tokenizer.pad_token_id or min(ends),
                    streamer=streamer,
                    **choice,
                )
        except BaseException as error:
            failure.append(error)
            streamer.end()

    worker = Thread(target=generate, daemon=True)
    worker.start()
    yield from (piece for piece in streamer if piece)
    worker.join()
    if failure:
        raise failure[0]
