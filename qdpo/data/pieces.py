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
from qdpo.foreign import shown
from qdpo.grammar import with_article

Row = Mapping[str, Any]


MEND = "mend the row, or take it out"


class BadRow(Exception):
    """A row that cannot become a pair.

    Args:
        what: is wrong with it, in words that all rows with this fault share; values of the row are no part of them.
        fix: what to do about it.
        field: the column that is at fault, where it is one.
        example: what exactly is wrong with this row; None shows the field, or the row.
    """

    def __init__(self, what: str, fix: str = MEND, field: str = "", example: str | None = None) -> None:
        super().__init__(what)
        self.fix, self.field, self.example = fix, field, example


class Inherent(BadRow):
    """A row that is left out without being at fault."""


class Tie(Inherent):
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

MESSAGES = "write messages: [{role: user, content: ...}]"
"""What to do about a column that should hold a conversation."""
KINDS = {"NoneType": "null", "str": "text", "int": "a number", "float": "a number", "bool": "true or false"}
KINDS |= {"list": "a list", "tuple": "a list", "dict": "an object"}
AROUND = 30
"""Characters on either side of what is shown of a text."""

CUT = "\udfff"
"""Where a text is taken apart before it is encoded: half a character, so that no row's text has it."""

LONE_SURROGATE = re.compile("[\ud800-\udfff]")

SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)
"""The columns in which datasets rate the two answers."""


def type_in_words(value: Any) -> str:
    """What a value is, in words of the file."""
    return KINDS.get(type(value).__name__, type(value).__name__)


def around(text: str, place: int) -> str:
    """The part of a text around a place."""
    start, end = max(place - AROUND, 0), place + AROUND
    return ("..." if start else "") + text[start:end] + ("..." if end < len(text) else "")


def whole(text: str) -> str:
    """A text that was taken apart as it was before."""
    return text.replace(CUT, "")


def same_answers() -> BadRow:
    """For rows whose two answers are one."""
    return BadRow("chosen and rejected are identical", "write two answers that differ", "chosen, rejected")


def text_of(row: Row, column: str, *, empty_ok: bool = False) -> str:
    """The text in a column; empty text is a bad row unless `empty_ok`."""
    if column not in row:
        raise BadRow(f"no column `{column}`", f"add the column `{column}`", column)
    value = row[column]
    if value is None:
        raise BadRow(f"`{column}` is null", "write a text", column)
    if not isinstance(value, str):
        raise BadRow(f"`{column}` is {type_in_words(value)}, expected text", "write a text in quotes", column)
    return _checked(value, column, empty_ok)


def _checked(text: str, column: str, empty_ok: bool = False, where: str = "") -> str:
    if not text:
        if empty_ok:
            return text
        raise BadRow(f"`{column}` {where}is empty", "write a text", column)
    if not text.strip():
        raise BadRow(f"`{column}` {where}is only white space", "write a text", column)
    if not text.isascii() and LONE_SURROGATE.search(text):
        raise BadRow(
            f"`{column}` has a lone surrogate (half a character, which no tokenizer can read)",
            "take the half character out",
            column,
            shown(around(text, LONE_SURROGATE.search(text).start())),  # type: ignore[union-attr]
        )
    return text


def messages_of(value: Any, column: str) -> list[Message]:
    """A list of {role, content} (or ShareGPT's {from, value}) as messages."""
    if value is None:
        raise BadRow(f"`{column}` is null", MESSAGES, column)
    if not isinstance(value, list | tuple):
        raise BadRow(f"`{column}` is {type_in_words(value)}, expected a list of messages", MESSAGES, column)
    if not value:
        raise BadRow(f"`{column}` is an empty list", MESSAGES, column)
    return [message_of(item, column) for item in value]


def message_of(item: Any, column: str) -> Message:
    """One message; knows the role names of several tools."""
    if not isinstance(item, Mapping):
        raise BadRow(
            f"`{column}` holds {type_in_words(item)}, expected messages with role and content", MESSAGES, column
        )
    named = item.get("role", item.get("from"))
    role = SPEAKERS.get(str(named).lower())
    if role is None:
        if str(named).lower() in TOOL_ROLES:
            raise BadRow(
                f"`{column}` has tool calls, which are not supported",
                "take these rows out, or write the calls as text of the assistant",
                column,
                f"the role {shown(named)}",
            )
        raise BadRow(
            f"`{column}` has an unknown role, expected system, user or assistant",
            "rename the role",
            column,
            f"the role {shown(named)}",
        )
    message = f"{with_article(role)} message"
    content = item.get("content", item.get("value"))
    if isinstance(content, list):
        content = _joined(content, column)
    if content is None:
        raise BadRow(f"`{column}` has {message} without content", MESSAGES, column)
    if not isinstance(content, str):
        raise BadRow(
            f"`{column}` has {message} whose content is {type_in_words(content)}, expected text",
            "write a text in quotes",
            column,
        )
    # A system message may be empty: the handbook's is.
    return Message(role, _checked(content, column, empty_ok=role == "system", where=f"has {message} that "))


def _joined(parts: list[Any], column: str) -> str:
    """Content given in parts ([{type: text, text: ...}]) as one text."""
    texts = []
    for part in parts:
        text = part.get("text", part.get("value")) if isinstance(part, Mapping) else part
        if not isinstance(text, str) or (isinstance(part, Mapping) and part.get("type", "text") != "text"):
            raise BadRow(
                f"`{column}` has a message with a part that is not text", "leave pictures and sound out", column
            )
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
        raise same_answers()
    # A prompt ends with the user: what the assistant says last before the difference belongs to the answers.
    while shared and chosen[shared - 1].role == "assistant":
        shared -= 1
    return list(chosen[:shared]), list(chosen[shared:]), list(rejected[shared:])


def check_turns(prompt: Sequence[Message], chosen: Sequence[Message], rejected: Sequence[Message]) -> None:
    """Roles in order: system at most once and first, then user and assistant by turns; one answer on each side."""
    for column, side in (("chosen", chosen), ("rejected", rejected)):
        if not side:
            raise BadRow(f"`{column}` has no answer after the prompt", "end with an assistant message", column)
        if side[0].role != "assistant":
            raise BadRow(
                f"`{column}` starts with {with_article(side[0].role)} message: its prompt differs or is missing",
                "give both answers the same prompt, word for word",
                column,
            )
        if len(side) > 1:
            raise BadRow(
                "chosen and rejected part ways before their last answer",
                "cut both after the first answer that differs",
                "chosen, rejected",
            )
    turns = prompt[1:] if prompt and prompt[0].role == "system" else prompt
    if prompt and not turns:
        raise BadRow("the prompt has only a system message", "add what the user says", "prompt")
    if turns:
        if turns[0].role == "assistant":
            raise BadRow("the prompt starts with an assistant message", "begin with the user", "prompt")
        for turn, expected in zip(turns, itertools.cycle(("user", "assistant")), strict=False):
            if turn.role != expected:
                raise BadRow(
                    f"`prompt` has roles out of order: {turn.role} where {expected} was expected",
                    "let user and assistant take turns; join two messages in a row",
                    "prompt",
                )
        if turns[-1].role != "user":
            raise BadRow("the prompt ends with an assistant message", "move it into both answers", "prompt")
