"""Rows as fine-tuning services and training frameworks write them."""

from __future__ import annotations

from collections.abc import Mapping

from qdpo.data.messages import (
    IN_ROWS,
    answer,
    messages_of,
    refuse_unread,
    role_of,
    said_in,
    system_of,
    turns_of,
)
from qdpo.data.pairs import Message
from qdpo.data.pieces import BadRow, Row, text_of
from qdpo.data.schemas.shape import Draw, Format, Parts, first_of

OUTPUTS = ("preferred_output", "non_preferred_output")


def _openai_known(row: Row) -> str | None:
    if isinstance(row.get("input"), Mapping) and row.keys() >= set(OUTPUTS):
        return f"columns input with messages, {', '.join(OUTPUTS)}"
    return None


def _read_openai(row: Row, draw: Draw) -> Parts:
    asked = row.get("input")
    if not isinstance(asked, Mapping):
        raise BadRow("`input` is no object with messages", "write {messages: [...]}", "input")
    refuse_unread(asked, IN_ROWS)
    chosen, rejected = (said_in({name: row.get(name)}, name) for name in OUTPUTS)
    return messages_of(asked.get("messages"), "input"), chosen, rejected, None


REJECTED = ("rejected_response", "rejected_messages", "rejected_message", "rejected")


def _swift_known(row: Row) -> str | None:
    rejected = first_of(row, REJECTED)
    turns = row.get("messages")
    if rejected is None or "chosen" in row or not isinstance(turns, list) or not turns:
        return None
    if role_of(turns[-1]) == "assistant":
        return f"columns messages (with the better answer at their end), {rejected}"
    return None


def _read_swift(row: Row, draw: Draw) -> Parts:
    turns = turns_of(row, "messages")
    rejected_column = first_of(row, REJECTED) or REJECTED[0]
    rejected = said_in({rejected_column: row.get(rejected_column)}, rejected_column)
    if turns[-1].role != "assistant":
        raise BadRow("`messages` does not end with an answer", "put the better answer at its end", "messages")
    prompt, chosen = turns[:-1], turns[-1:]
    if len(rejected) > 1:
        if rejected[: len(prompt)] != prompt:
            raise BadRow(
                f"`messages` and `{rejected_column}` differ before their last answers",
                "give both the same turns before the last answer",
                rejected_column,
            )
        rejected = rejected[len(prompt) :]
    if prompt and prompt[0].role != "system":
        prompt = system_of(row) + prompt
    return prompt, chosen, rejected, None


def _lists_known(row: Row) -> str | None:
    sides = [row.get("chosen"), row.get("rejected")]
    if "prompt" in row and all(isinstance(s, list) and s and all(isinstance(t, str) for t in s) for s in sides):
        return "columns prompt, chosen, rejected (lists of texts)"
    return None


def _read_lists(row: Row, draw: Draw) -> Parts:
    """RewardBench 2: right and wrong answers, of which the first right one and a drawn wrong one make the pair."""
    sides = []
    for column in ("chosen", "rejected"):
        texts = row.get(column)
        if not isinstance(texts, list) or not texts:
            raise BadRow(f"`{column}` is no list of texts", "write [text, ...]", column)
        sides.append([answer(text_of({column: text}, column)) for text in texts])
    right, wrong = sides
    rejected = wrong[draw(len(wrong))]
    return [Message("user", text_of(row, "prompt"))], right[0], rejected, None


SERVICE_FORMATS = (
    Format(
        "openai",
        ("input", *OUTPUTS),
        _read_openai,
        "OpenAI, Azure OpenAI, Together, Fireworks",
        known=_openai_known,
    ),
    Format(
        "swift",
        ("messages",),
        _read_swift,
        "ms-swift, OpenPipe",
        "messages with the better answer at their end, and rejected_response or rejected_messages",
        known=_swift_known,
    ),
    Format(
        "answer_lists",
        ("prompt", "chosen", "rejected"),
        _read_lists,
        "allenai/reward-bench-2",
        "prompt, chosen and rejected as lists of texts: the first right one against a drawn wrong one",
        known=_lists_known,
        drawn=True,
    ),
)
"""The formats of this file, the more specific one of two first."""
