"""The pieces that rows of every schema are read with: texts, messages, scores, conversations.

Whatever cannot be used raises `BadRow` with the reason and the column.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qdpo.data.pairs import Message

Row = Mapping[str, Any]


class BadRow(Exception):
    """A row that cannot become a pair; the text is the reason."""


class Tie(BadRow):
    """A row whose answers have the same score: nothing is preferred."""


# The names that LLaMA-Factory, ShareGPT, Open Assistant and others use for the two speakers.
SPEAKERS = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
}
TOOL_ROLES = frozenset({"tool", "function", "function_call", "observation", "ipython"})

LONE_SURROGATE = re.compile("[\ud800-\udfff]")

SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)
"""The columns in which datasets rate the two answers."""


def text_of(row: Row, column: str, *, empty_ok: bool = False) -> str:
    """The text in a column; empty text is a bad row unless `empty_ok`."""
    if column not in row:
        raise BadRow(f"no column `{column}`")
    value = row[column]
    if value is None:
        raise BadRow(f"`{column}` is null")
    if not isinstance(value, str):
        raise BadRow(f"`{column}` is {type(value).__name__}, expected text")
    return _checked(value, column, empty_ok)


def _checked(text: str, column: str, empty_ok: bool = False) -> str:
    if not text:
        if empty_ok:
            return text
        raise BadRow(f"empty `{column}`")
    if not text.strip():
        raise BadRow(f"`{column}` is only white space")
    if not text.isascii() and LONE_SURROGATE.search(text):
        raise BadRow(f"`{column}` has a lone surrogate (half a character, which no tokenizer can read)")
    return text


def messages_of(value: Any, column: str) -> list[Message]:
    """A list of {role, content} (or ShareGPT's {from, value}) as messages."""
    if value is None:
        raise BadRow(f"`{column}` is null")
    if not isinstance(value, list | tuple):
        raise BadRow(f"`{column}` is {type(value).__name__}, expected a list of messages")
    if not value:
        raise BadRow(f"`{column}` is an empty list")
    return [message_of(item, column) for item in value]


def message_of(item: Any, column: str) -> Message:
    """One message; knows the role names of several tools."""
    if not isinstance(item, Mapping):
        raise BadRow(f"`{column}` holds {type(item).__name__}, expected messages with role and content")
    named = item.get("role", item.get("from"))
    role = SPEAKERS.get(str(named).lower())
    if role is None:
        if str(named).lower() in TOOL_ROLES:
            raise BadRow(f"`{column}` has the role {named!r}: tool calls are not supported")
        raise BadRow(f"`{column}` has the role {named!r}, expected system, user or assistant")
    content = item.get("content", item.get("value"))
    if isinstance(content, list):
        content = _joined(content, column)
    if content is None:
        raise BadRow(f"`{column}` has a {role} message without content")
    if not isinstance(content, str):
        raise BadRow(f"`{column}` has a {role} message whose content is {type(content).__name__}, expected text")
    # A system message may be empty: the handbook's is.
    return Message(role, _checked(content, column, empty_ok=role == "system"))


def _joined(parts: list[Any], column: str) -> str:
    """Content given in parts ([{type: text, text: ...}]) as one text."""
    texts = []
    for part in parts:
        text = part.get("text", part.get("value")) if isinstance(part, Mapping) else part
        if not isinstance(text, str) or (isinstance(part, Mapping) and part.get("type", "text") != "text"):
            raise BadRow(f"`{column}` has a message with a part that is not text")
        texts.append(text)
    return "".join(texts)


def system_of(row: Row) -> list[Message]:
    """The system message, when the row brings a non-empty one."""
    value = row.get("system")
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    return [Message("system", text_of(row, "system"))]


def answer(text: str) -> list[Message]:
    """A completion given as text."""
    return [Message("assistant", text)]


def scores_of(row: Row) -> tuple[float, float] | None:
    """The ratings of chosen and rejected, where the row has both."""
    for chosen, rejected in SCORES:
        first, second = number(row.get(chosen)), number(row.get(rejected))
        if first is not None and second is not None:
            return first, second
    return None


def number(value: Any) -> float | None:
    """A finite number, also when written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def split_conversations(
    chosen: Sequence[Message], rejected: Sequence[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Two whole conversations -> what they share (the prompt) and what differs."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == len(chosen) == len(rejected):
        raise BadRow("chosen and rejected are identical")
    # A prompt ends with the user: what the assistant says last before the difference belongs to the answers.
    while shared and chosen[shared - 1].role == "assistant":
        shared -= 1
    return list(chosen[:shared]), list(chosen[shared:]), list(rejected[shared:])


def check_turns(prompt: Sequence[Message], chosen: Sequence[Message], rejected: Sequence[Message]) -> None:
    """Roles in order: system at most once and first, then user and assistant by turns; one answer on each side."""
    for column, side in (("chosen", chosen), ("rejected", rejected)):
        if not side:
            raise BadRow(f"`{column}` has no answer after the prompt")
        if side[0].role != "assistant":
            raise BadRow(f"`{column}` starts with a {side[0].role} message: its prompt differs or is missing")
        if len(side) > 1:
            raise BadRow("chosen and rejected part ways before their last answer")
    turns = prompt[1:] if prompt and prompt[0].role == "system" else prompt
    if prompt and not turns:
        raise BadRow("the prompt has only a system message")
    if turns:
        if turns[0].role == "assistant":
            raise BadRow("the prompt starts with an assistant message")
        for turn, expected in zip(turns, itertools.cycle(("user", "assistant")), strict=False):
            if turn.role != expected:
                raise BadRow(f"`prompt` has roles out of order: {turn.role} where {expected} was expected")
        if turns[-1].role != "user":
            raise BadRow("the prompt ends with an assistant message")
