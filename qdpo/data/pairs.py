"""The one form that every dataset is brought to, before and after tokenisation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: system, user or assistant.
        content: its text.
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference: of two completions of one prompt, which is better.

    Attributes:
        row: number of the row in its source, from 1; of its line where the source has lines.
        prompt: the conversation before the completion; empty when completions stand alone.
        chosen: the better completion, one assistant message or more.
        rejected: the worse completion.
        scores: what the dataset rates chosen and rejected, where it does.
    """

    row: int
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    scores: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A preference in token ids.

    Attributes:
        row: number of the row in its source, from 1; of its line where the source has lines.
        prompt: ids shared by both sequences, BOS included; never empty.
        chosen: ids of the better completion; its tokens are scored.
        rejected: ids of the worse completion.
    """

    row: int
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
