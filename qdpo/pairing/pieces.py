"""What prompts and answers are called in files of any origin, and how they are read and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qdpo.data.messages import answer, check_turns, message_of, messages_of, question_in, system_of
from qdpo.data.pairs import Message
from qdpo.data.pieces import BadRow, Row, text_of
from qdpo.data.schemas.formats import SYNONYMS
from qdpo.data.schemas.shape import first_of
from qdpo.foreign import visible
from qdpo.grammar import with_article

PROMPT = ("prompt", "messages", "conversations", "conversation", *SYNONYMS["prompt"])
ANSWERS = ("answers", "completions", "responses", "candidates", "generations")
"""Columns that hold several answers."""
ANSWER = ("completion", "response", "answer", "output", "generation")
Prompt = tuple[Message, ...]


def asked(row: Row) -> tuple[Prompt, str | None]:
    """The prompt of a row, and the answer that a conversation ends with; None where it ends with the question.

    Raises:
        BadRow: there is none, or it cannot be used.
    """
    column = first_of(row, PROMPT)
    if column is None:
        raise BadRow("no prompt", "add the column `prompt`, or `messages`", "prompt")
    value, said = row[column], None
    talks = isinstance(value, list | tuple)
    turns = messages_of(value, column) if talks else [Message("user", question_in(row, column))]
    if turns[-1].role == "assistant":
        said = turns.pop().content
    if not turns or turns[0].role != "system":
        turns = system_of(row) + turns
    if not turns:
        raise BadRow(f"`{column}` has an answer and no question", "begin with what the user says", column)
    check_turns(turns, *[answer(said or "-")] * 2)
    return tuple(turns), said


def answer_of(value: Any, column: str) -> str:
    """An answer given as text, as a message, or as a list of one.

    Raises:
        BadRow: it is none of these, or empty.
    """
    if isinstance(value, list | tuple):
        turns = messages_of(value, column)
        if len(turns) > 1:
            raise BadRow(
                f"`{column}` has several messages, expected one answer", "put the others in the prompt", column
            )
        value = turns[0]
    elif isinstance(value, Mapping):
        value = message_of(value, column)
    if isinstance(value, Message):
        if value.role != "assistant":
            raise BadRow(
                f"`{column}` is {with_article(value.role)} message, expected an answer", "write the assistant's", column
            )
        value = value.content
    return text_of({column: value}, column)


def are_texts(prompts: Sequence[Prompt]) -> bool:
    """Whether all prompts are one message of a user, so that a file can hold them as texts."""
    return all(len(prompt) == 1 and prompt[0].role == "user" for prompt in prompts)


def written(prompt: Prompt, as_text: bool) -> Any:
    """A prompt for a file: its text, or its messages with `role` and `content`."""
    if as_text:
        return prompt[0].content
    return [{"role": message.role, "content": message.content} for message in prompt]


def shortened(prompt: Prompt, characters: int = 60) -> str:
    """What a prompt asks, in a line, for a message."""
    words = visible(" ".join(prompt[-1].content.split()))
    return words if len(words) <= characters else f"{words[: characters - 3]}..."
