"""Recognising the shape of a preference dataset and bringing its rows to `Pair`.

Each format is one entry of `FORMATS`: which columns and values it is known by, and how a row is read. A row that
cannot be used raises `BadRow` with the reason; the caller counts and reports it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdpo.data.pairs import ROLES, Message, Pair
from qdpo.errors import DataError

Row = Mapping[str, Any]
Parts = tuple[Sequence[Message], Sequence[Message], Sequence[Message]]
"""Prompt, chosen, rejected."""


class BadRow(Exception):
    """A row that cannot become a pair; the text is the reason."""


@dataclass(frozen=True)
class Format:
    """A shape of rows.

    Attributes:
        name: the value of data.format.
        known_by: says why a row has this shape, or None if it has not.
        read: turns a row into (prompt, chosen, rejected).
    """

    name: str
    known_by: Callable[[Row], str | None]
    read: Callable[[Row], Parts]


# ---------------------------------------------------------------------------------------------------------- pieces


def text_of(row: Row, column: str) -> str:
    """The text in a column; empty text is a bad row."""
    value = row.get(column)
    if value is None:
        raise BadRow(f"`{column}` is missing or null")
    if not isinstance(value, str):
        raise BadRow(f"`{column}` is {type(value).__name__}, expected text")
    if not value.strip():
        raise BadRow(f"empty `{column}`")
    return value


def messages_of(value: Any, column: str) -> list[Message]:
    """A list of {role, content} (or ShareGPT's {from, value}) as messages."""
    if not isinstance(value, list) or not value:
        raise BadRow(f"`{column}` is {type(value).__name__}, expected a list of messages")
    return [_message(item, column) for item in value]


def _message(item: Any, column: str) -> Message:
    if not isinstance(item, Mapping):
        raise BadRow(f"`{column}` holds {type(item).__name__}, expected messages with role and content")
    role = item.get("role", item.get("from"))
    content = item.get("content", item.get("value"))
    role = {"human": "user", "gpt": "assistant", "bot": "assistant"}.get(str(role), role)
    if role not in ROLES:
        raise BadRow(f"`{column}` has the role {role!r}, expected one of {', '.join(ROLES)}")
    if not isinstance(content, str) or not content.strip():
        raise BadRow(f"empty `{column}`")
    return Message(str(role), content)


def system_of(row: Row) -> list[Message]:
    """The system message, when the row brings a non-empty one."""
    value = row.get("system")
    return [Message("system", value)] if isinstance(value, str) and value.strip() else []


def answer(text: str) -> list[Message]:
    """A completion given as text."""
    return [Message("assistant", text)]


def split_conversations(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Two whole conversations -> what they share (the prompt) and what differs."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    # Everything shared, yet one goes on: the last shared assistant turn is then part of the answers, not the prompt.
    while shared and chosen[shared - 1].role == "assistant":
        shared -= 1
    return chosen[:shared], chosen[shared:], rejected[shared:]


# ------------------------------------------------------------------------------------------------------- the formats


def _is_text(row: Row, *columns: str) -> bool:
    return all(isinstance(row.get(column), str) for column in columns)


def _is_list(row: Row, *columns: str) -> bool:
    return all(isinstance(row.get(column), list) for column in columns)


def _pairs_known(row: Row) -> str | None:
    if {"prompt", "chosen", "rejected"} <= row.keys():
        kind = "message lists" if isinstance(row["chosen"], list) else "text"
        return f"columns prompt, chosen, rejected ({kind})"
    return None


def _read_pairs(row: Row) -> Parts:
    value = row.get("prompt")
    prompt = messages_of(value, "prompt") if isinstance(value, list) and value else None
    sides = []
    for column in ("chosen", "rejected"):
        if isinstance(row.get(column), list):
            sides.append(messages_of(row[column], column))
        else:
            sides.append(answer(text_of(row, column)))
    chosen, rejected = sides
    if len(chosen) > 1 or len(rejected) > 1:
        # ultrafeedback_binarized repeats the prompt inside both conversations
        shared, chosen, rejected = split_conversations(chosen, rejected)
        if shared:
            return shared, chosen, rejected
    if prompt is None:
        # An empty prompt is legal: the completions then stand alone (minimal pairs).
        if not isinstance(value, str):
            raise BadRow(f"`prompt` is {type(value).__name__}, expected text or messages")
        prompt = [Message("user", value)] if value.strip() else []
    if prompt and prompt[0].role != "system":
        prompt = system_of(row) + prompt
    return prompt, chosen, rejected


def _implicit_known(row: Row) -> str | None:
    if "prompt" not in row and _is_list(row, "chosen", "rejected") and "conversations" not in row:
        return "columns chosen, rejected with whole conversations and no prompt"
    return None


def _read_implicit(row: Row) -> Parts:
    return split_conversations(messages_of(row.get("chosen"), "chosen"), messages_of(row.get("rejected"), "rejected"))


TURN = re.compile(r"\n\n(Human|Assistant): ?")


def _transcripts_known(row: Row) -> str | None:
    if "prompt" not in row and _is_text(row, "chosen", "rejected") and row["chosen"].startswith("\n\nHuman:"):
        return "columns chosen, rejected with `Human:`/`Assistant:` transcripts"
    return None


def _transcript(text: str, column: str) -> list[Message]:
    parts = TURN.split(text)
    if len(parts) < 3 or parts[0].strip():
        raise BadRow(f"`{column}` is not a transcript of `Human:` and `Assistant:` turns")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        Message(roles[speaker], said.strip())
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
        if said.strip()
    ]


def _read_transcripts(row: Row) -> Parts:
    return split_conversations(
        _transcript(text_of(row, "chosen"), "chosen"), _transcript(text_of(row, "rejected"), "rejected")
    )


def _orca_known(row: Row) -> str | None:
    return "columns question, chosen, rejected" if _is_text(row, "question", "chosen", "rejected") else None


def _read_orca(row: Row) -> Parts:
    prompt = [*system_of(row), Message("user", text_of(row, "question"))]
    return prompt, answer(text_of(row, "chosen").strip()), answer(text_of(row, "rejected").strip())


def _winogrande_known(row: Row) -> str | None:
    if {"sentence", "option1", "option2", "answer"} <= row.keys():
        return "columns sentence (with `_`), option1, option2, answer"
    return None


def _read_winogrande(row: Row) -> Parts:
    sentence = text_of(row, "sentence")
    if sentence.count("_") != 1:
        raise BadRow(f"`sentence` has {sentence.count('_')} gaps `_`, expected 1")
    right = str(row.get("answer"))
    if right not in ("1", "2"):
        raise BadRow(f"`answer` is {row.get('answer')!r}, expected 1 or 2")
    options = [text_of(row, "option1").strip(), text_of(row, "option2").strip()]
    before, after = sentence.split("_")
    completions = [answer(option + after.rstrip()) for option in options]
    if right == "2":
        completions.reverse()
    return [Message("user", before.strip())], completions[0], completions[1]


def _ultrafeedback_known(row: Row) -> str | None:
    return "columns instruction, completions (scored answers)" if _is_list(row, "completions") else None


def _read_ultrafeedback(row: Row) -> Parts:
    prompt = [Message("user", text_of(row, "instruction"))]
    scored = [
        (float(item["overall_score"]), item["response"])
        for item in row["completions"]
        if isinstance(item, Mapping) and isinstance(item.get("overall_score"), int | float) and item.get("response")
    ]
    if len(scored) < 2:
        raise BadRow("fewer than two scored `completions`")
    # zephyr took the best answer and a worse one; the worst keeps the choice independent of a seed
    best, worst = max(scored, key=lambda s: s[0]), min(scored, key=lambda s: s[0])
    if best[0] == worst[0]:
        raise BadRow("all `completions` have the same score")
    return prompt, answer(best[1]), answer(worst[1])


def _binarized_known(row: Row) -> str | None:
    if _is_text(row, "instruction", "chosen_response", "rejected_response"):
        return "columns instruction, chosen_response, rejected_response"
    return None


def _read_binarized(row: Row) -> Parts:
    prompt = [*system_of(row), Message("user", text_of(row, "instruction"))]
    return prompt, answer(text_of(row, "chosen_response")), answer(text_of(row, "rejected_response"))


def _llama_factory_known(row: Row) -> str | None:
    if _is_list(row, "conversations") and {"chosen", "rejected"} <= row.keys():
        return "columns conversations, chosen, rejected with {from, value}"
    return None


def _read_llama_factory(row: Row) -> Parts:
    sides = []
    for column in ("chosen", "rejected"):
        value = row.get(column)
        sides.append([_message(value, column)] if isinstance(value, Mapping) else answer(text_of(row, column)))
    return [*system_of(row), *messages_of(row["conversations"], "conversations")], sides[0], sides[1]


def _minimal_known(row: Row) -> str | None:
    return "columns sentence_good, sentence_bad" if _is_text(row, "sentence_good", "sentence_bad") else None


def _read_minimal(row: Row) -> Parts:
    return [], answer(text_of(row, "sentence_good")), answer(text_of(row, "sentence_bad"))


FORMATS = (
    Format("llama_factory", _llama_factory_known, _read_llama_factory),
    Format("pairs", _pairs_known, _read_pairs),
    Format("orca", _orca_known, _read_orca),
    Format("winogrande", _winogrande_known, _read_winogrande),
    Format("ultrafeedback", _ultrafeedback_known, _read_ultrafeedback),
    Format("ultrafeedback_binarized", _binarized_known, _read_binarized),
    Format("implicit_prompt", _implicit_known, _read_implicit),
    Format("transcripts", _transcripts_known, _read_transcripts),
    Format("minimal_pairs", _minimal_known, _read_minimal),
)
BY_NAME = {format.name: format for format in FORMATS}


def recognise(row: Row, wanted: str, source: str) -> tuple[Format, str]:
    """The format of a dataset, from its first row, and the reason.

    Args:
        row: a row, columns already renamed.
        wanted: data.format; `auto` recognises.
        source: the dataset's name, for the message.

    Raises:
        DataError: no known format fits.
    """
    if wanted != "auto":
        return BY_NAME[wanted], "set by data.format"
    for format in FORMATS:
        if reason := format.known_by(row):
            return format, reason
    columns = ", ".join(sorted(map(str, row))) or "none"
    raise DataError(
        f"{source}: no known preference format has the columns {columns}",
        "name the columns in data.columns, e.g. `columns: {prompt: question, chosen: good, rejected: bad}`",
    )


def to_pair(row: Row, number: int, format: Format, system: str | None) -> Pair:
    """One row as a `Pair`.

    Args:
        row: the row, columns already renamed.
        number: its number in the source, from 0.
        format: how to read it.
        system: system message for rows that bring none.

    Raises:
        BadRow: with the reason.
    """
    prompt, chosen, rejected = format.read(row)
    for column, side in (("chosen", chosen), ("rejected", rejected)):
        if not side:
            raise BadRow(f"`{column}` has no answer after the prompt")
        if side[0].role != "assistant" or side[-1].role != "assistant":
            raise BadRow(f"`{column}` does not start and end with an assistant message")
    if prompt and prompt[-1].role == "assistant":
        raise BadRow("the prompt ends with an assistant message")
    if tuple(chosen) == tuple(rejected):
        raise BadRow("chosen and rejected are identical")
    if system and not (prompt and prompt[0].role == "system"):
        prompt = [Message("system", system), *prompt]
    return Pair(number, tuple(prompt), tuple(chosen), tuple(rejected))
