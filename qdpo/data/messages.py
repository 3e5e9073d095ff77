"""Conversations as files hold them: messages with roles, what they may not have beside their text, how two part."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from qdpo.data.pairs import Message
from qdpo.data.pieces import BadRow, Row, checked, number, same_answers, text_of, type_in_words
from qdpo.foreign import shown
from qdpo.grammar import with_article

# The names that LLaMA-Factory, ShareGPT, Open Assistant and others use for the two speakers.
SPEAKERS = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
}
TOOL_ROLES = frozenset({"tool", "function", "function_call", "observation", "ipython"})

SAID_IN = ("content", "value", "text", "parts")
"""The keys under which messages hold what was said."""
OF_TEXT = ("text", "input_text", "output_text", None)
"""Types of the parts of a message that are text."""

IN_ROWS = dict.fromkeys(
    ("image", "images", "video", "videos", "audio", "audios"),
    ("pictures, video or sound", "qdpo learns from text alone: take these rows out"),
)
IN_ROWS |= dict.fromkeys(
    ("tools", "functions"),
    ("tools, which are no part of what would be learned from", "write them into the system message"),
)
IN_ROWS["weight"] = "a weight, and all pairs count alike", "use data.mixture for the weights of whole datasets"
IN_MESSAGES = dict.fromkeys(
    ("tool_calls", "function_call"),
    ("tool calls, which are not supported", "take these rows out, or write the calls as text of the assistant"),
)
IN_MESSAGES |= dict.fromkeys(
    ("reasoning_content", "reasoning", "thinking"),
    ("thinking beside its text", "write it into the text, with the marks that the model uses (<think>...</think>)"),
)
"""Keys that change what is meant and are not read: what they are, and what to do."""

MESSAGES = "write messages: [{role: user, content: ...}]"
"""What to do about a column that should hold a conversation."""
SYSTEM = ("system", "system_prompt", "system_message")
"""The columns that hold a system message."""


def turns_of(row: Row, column: str) -> list[Message]:
    """The messages in a column."""
    if column not in row:
        raise BadRow(f"no column `{column}`", f"add the column `{column}`", column)
    return messages_of(row[column], column)


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
    named = _speaker(item)
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
    refuse_unread(item, IN_MESSAGES, column)
    content = next((item[key] for key in SAID_IN if item.get(key) is not None), None)
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
    return Message(role, checked(content, column, empty_ok=role == "system", where=f"has {message} that "))


def _speaker(item: Row) -> Any:
    # a key without a value is none: Parquet gives every message the keys of all
    return item["from"] if item.get("role") is None and "from" in item else item.get("role")


def role_of(item: Any) -> str | None:
    """Who speaks in a message; None for anything else."""
    return SPEAKERS.get(str(_speaker(item)).lower()) if isinstance(item, Mapping) else None


def refuse_unread(row: Row, keys: Mapping[str, tuple[str, str]], column: str = "") -> None:
    """Refuse what is a part of what was said and would not be read.

    Args:
        row: a row, or a message.
        keys: `IN_ROWS` or `IN_MESSAGES`.
        column: of the message; empty for a row.

    Raises:
        BadRow: it holds such a thing.
    """
    for key in row.keys() & keys.keys():
        # nothing, or the weight that all have, also as CSV writes it
        if _is_nothing(row[key]) or number(row[key]) == 1:
            continue
        what, fix = keys[key]
        raise BadRow(
            f"`{column}` has a message with {what} (`{key}`)" if column else f"the row has {what} (`{key}`)",
            f"{fix}; data.ignore=[{key}] reads the rest as if it were not there",
            column or key,
            shown(row[key]),
        )


def _is_nothing(value: Any) -> bool:
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else None
    return value in (None, "", "[]", "{}") if inside is None else all(item is None for item in inside)


def _joined(parts: list[Any], column: str) -> str:
    """Content given in parts ([{type: text, text: ...}]) as one text."""
    texts = []
    for part in parts:
        text = part.get("text", part.get("value")) if isinstance(part, Mapping) else part
        if not isinstance(text, str) or (isinstance(part, Mapping) and part.get("type") not in OF_TEXT):
            raise BadRow(
                f"`{column}` has a message with a part that is not text", "leave pictures and sound out", column
            )
        texts.append(text)
    return "".join(texts)


def system_of(row: Row) -> list[Message]:
    """The system message, when the row brings a non-empty one."""
    for column in SYSTEM:
        value = row.get(column)
        if value is not None and not (isinstance(value, str) and not value.strip()):
            return [Message("system", text_of(row, column))]
    return []


def history_of(row: Row) -> list[Message]:
    """The turns before the question, where the row brings some: questions with their answers, or messages.

    Raises:
        BadRow: `history` is something else.
    """
    value = row.get("history")
    if value is None or value in ("", "[]") or value == []:
        return []
    if isinstance(value, list) and all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in value):
        roles = ("user", "assistant")
        said = [(role, text) for turn in value for role, text in zip(roles, turn, strict=True)]
        return [Message(role, text_of({"history": text}, "history")) for role, text in said]
    if isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value):
        return messages_of(value, "history")
    raise BadRow(
        f"`history` is {type_in_words(value)}, expected the earlier turns",
        "write [[question, answer], ...], or set data.ignore=[history]",
        "history",
    )


def after_history(row: Row, turns: list[Message]) -> list[Message]:
    """A conversation with the turns before it, where the row brings some."""
    system = turns[:1] if turns and turns[0].role == "system" else []
    return [*system, *history_of(row), *turns[len(system) :]]


def question_in(row: Row, column: str, *, empty_ok: bool = False) -> str:
    """A question given as text; Alpaca's instructions come with an input."""
    text = text_of(row, column, empty_ok=empty_ok)
    return f"{text}\n{text_of(row, 'input')}" if column == "instruction" and row.get("input") else text


def asked_in(row: Row, column: str) -> list[Message]:
    """What was asked, messages or a text, with the turns before it and the system message that the row brings."""
    if isinstance(row[column], list):
        turns = after_history(row, messages_of(row[column], column))
        return [*(system_of(row) if turns[0].role != "system" else []), *turns]
    return [*system_of(row), *after_history(row, [Message("user", question_in(row, column))])]


def answer(text: str) -> list[Message]:
    """A completion given as text."""
    return [Message("assistant", text)]


def said_in(row: Row, column: str) -> list[Message]:
    """What was said in a column: messages, one message, or an answer given as text."""
    value = row.get(column)
    if isinstance(value, list):
        return messages_of(value, column)
    return [message_of(value, column)] if isinstance(value, Mapping) else answer(text_of(row, column))


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
    """Roles in order: system at most once and first, then user and assistant by turns; one answer on each side.

    An assistant may greet first: whether there is a place for that, the template says.
    """
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
        first = int(turns[0].role == "assistant")
        speakers = itertools.islice(itertools.cycle(("user", "assistant")), first, None)
        for turn, expected in zip(turns, speakers, strict=False):
            if turn.role != expected:
                raise BadRow(
                    f"`prompt` has roles out of order: {turn.role} where {expected} was expected",
                    "let user and assistant take turns; join two messages in a row",
                    "prompt",
                )
        if turns[-1].role != "user":
            raise BadRow("the prompt ends with an assistant message", "move it into both answers", "prompt")
