"""Rows as fine-tuning services, training frameworks and labelling tools write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdpo.data.messages import IN_ROWS, answer, message_of, messages_of, refuse_unread, system_of, turns_of
from qdpo.data.pairs import Message
from qdpo.data.pieces import BadRow, Row, Tie, number, text_of
from qdpo.data.schemas.judged import MARKS, ordered, winner
from qdpo.data.schemas.shape import Draw, Format, Parts, first_of

OUTPUTS = ("preferred_output", "non_preferred_output")


def _side(value: Any, column: str) -> list[Message]:
    if isinstance(value, list):
        return messages_of(value, column)
    return [message_of(value, column)] if isinstance(value, Mapping) else answer(text_of({column: value}, column))


def _openai_known(row: Row) -> str | None:
    if isinstance(row.get("input"), Mapping) and row.keys() >= set(OUTPUTS):
        return f"columns input with messages, {', '.join(OUTPUTS)}"
    return None


def _read_openai(row: Row, draw: Draw) -> Parts:
    asked = row.get("input")
    if not isinstance(asked, Mapping):
        raise BadRow("`input` is no object with messages", "write {messages: [...]}", "input")
    refuse_unread(asked, IN_ROWS)
    chosen, rejected = (_side(row.get(name), name) for name in OUTPUTS)
    return messages_of(asked.get("messages"), "input"), chosen, rejected, None


REJECTED = ("rejected_response", "rejected_messages", "rejected_message", "rejected")


def _swift_known(row: Row) -> str | None:
    rejected = first_of(row, REJECTED)
    turns = row.get("messages")
    if rejected is None or "chosen" in row or not isinstance(turns, list) or not turns:
        return None
    last = turns[-1]
    if isinstance(last, Mapping) and str(last.get("role", last.get("from"))).lower() in ("assistant", "gpt"):
        return f"columns messages (with the better answer at their end), {rejected}"
    return None


def _read_swift(row: Row, draw: Draw) -> Parts:
    turns = turns_of(row, "messages")
    rejected_column = first_of(row, REJECTED) or REJECTED[0]
    rejected = _side(row.get(rejected_column), rejected_column)
    if turns[-1].role != "assistant":
        raise BadRow("`messages` does not end with an answer", "put the better answer at its end", "messages")
    prompt, chosen = turns[:-1], turns[-1:]
    if len(rejected) > 1 and rejected[: len(prompt)] == prompt:
        rejected = rejected[len(prompt) :]
    if prompt and prompt[0].role != "system":
        prompt = system_of(row) + prompt
    return prompt, chosen, rejected, None


# -- Argilla

_FIELDS = ("fields", "responses")


def _argilla_known(row: Row) -> str | None:
    fields = row.get("fields")
    if isinstance(fields, Mapping) and "responses" in row and len(_texts(fields)) == 2:
        return f"columns fields ({', '.join(fields)}), responses: a record of Argilla"
    return None


def _texts(fields: Row) -> list[str]:
    """The fields of a record that hold the two answers."""
    return sorted(
        name for name in fields if name.lower().startswith(("response", "answer", "completion", "generation"))
    )


def _values(row: Row) -> list[tuple[str, Any]]:
    """What annotators said, by question; suggestions where nobody said anything."""
    found: list[tuple[str, Any]] = []
    for place in ("responses", "suggestions"):
        given = row.get(place)
        if isinstance(given, Mapping):  # Argilla 2: {question: [{value, user_id}]}
            for question, entries in given.items():
                entries = entries if isinstance(entries, list) else [entries]
                found += [(question, entry.get("value")) for entry in entries if isinstance(entry, Mapping)]
        elif isinstance(given, list):  # Argilla 1: [{values: {question: {value}}, status}]
            for entry in given:
                if not isinstance(entry, Mapping) or entry.get("status") == "discarded":
                    continue
                said_of = entry.get("values")
                if "question_name" in entry:
                    found.append((str(entry["question_name"]), entry.get("value")))
                for question, said in said_of.items() if isinstance(said_of, Mapping) else ():
                    found.append((question, said.get("value") if isinstance(said, Mapping) else said))
        if found:
            return found
    return found


def _read_argilla(row: Row, draw: Draw) -> Parts:
    fields = row["fields"] if isinstance(row.get("fields"), Mapping) else {}
    names = _texts(fields)
    asked = first_of(fields, ("prompt", "instruction", "question", "input", "context"))
    if len(names) != 2 or asked is None:
        raise BadRow("`fields` is no question with two answers", "write the fields that other records have", "fields")
    first, second = names
    score = 0
    for question, value in _values(row):
        score += _argilla_vote(question, value, (first, second))
    won = None if score == 0 else int(score < 0)
    if not _values(row):
        raise Tie("nobody has said which is better", "annotate the record", "responses")
    chosen, rejected = ordered([_side(fields[name], "fields") for name in names], won)
    prompt = _side(fields[asked], "fields") if isinstance(fields[asked], list) else _user(text_of(fields, asked))
    return [*(system_of(fields) if prompt[0].role != "system" else []), *prompt], chosen, rejected, None


def _user(text: str) -> list[Message]:
    return [Message("user", text)]


def _argilla_vote(question: str, value: Any, sides: tuple[str, str]) -> int:
    """1 for the first answer, -1 for the second, 0 for neither or for a question about something else."""
    if isinstance(value, list):  # a ranking: the smaller the better
        ranks = {str(item.get("value")): number(item.get("rank")) for item in value if isinstance(item, Mapping)}
        first, second = (ranks.get(side) for side in sides)
        return 0 if first is None or second is None else (first < second) - (first > second)
    marks = next((m for m in MARKS if all(s.lower().endswith(x.lower()) for s, x in zip(sides, m, strict=True))), None)
    try:
        won = winner(value, sides, marks or ("1", "2"), question)
    except BadRow:
        return 0  # a comment, or another question
    return 0 if won is None else (1, -1)[won]


# -- Label Studio


def _studio_known(row: Row) -> str | None:
    data = row.get("data")
    if isinstance(data, Mapping) and isinstance(row.get("annotations"), list) and len(_studio_sides(data)) == 2:
        return f"columns data ({', '.join(map(str, data))}), annotations: a task of Label Studio"
    return None


def _studio_sides(data: Row) -> list[str]:
    return sorted(
        name
        for name in data
        if name.rstrip("12abAB_").lower() in ("answer", "response", "text", "completion", "output")
        and name.rstrip("12abAB_") != name
    )


def _read_studio(row: Row, draw: Draw) -> Parts:
    data = row["data"] if isinstance(row.get("data"), Mapping) else {}
    names = _studio_sides(data)
    asked = first_of(data, ("prompt", "question", "instruction", "input"))
    if len(names) != 2 or asked is None:
        raise BadRow("`data` is no question with two answers", "write the fields that other tasks have", "data")
    votes = []
    for annotation in row["annotations"] if isinstance(row.get("annotations"), list) else []:
        if not isinstance(annotation, Mapping) or annotation.get("was_cancelled"):
            continue
        results = annotation.get("result")
        for result in results if isinstance(results, list) else []:
            value = result.get("value") if isinstance(result, Mapping) and result.get("type") == "pairwise" else None
            if isinstance(value, Mapping):
                votes.append(winner(value.get("selected"), (names[0], names[1]), ("left", "right"), "annotations"))
    if not votes:
        raise Tie("nobody has compared the two answers", "annotate the task", "annotations")
    first, second = votes.count(0), votes.count(1)
    won = None if first == second else int(second > first)
    chosen, rejected = ordered([answer(text_of(data, name)) for name in names], won)
    return [*system_of(data), *_user(text_of(data, asked))], chosen, rejected, None


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
        sides.append([(0.0, answer(text_of({column: text}, column))) for text in texts])
    rejected = sides[1][draw(len(sides[1]))][1]
    return _user(text_of(row, "prompt")), sides[0][0][1], rejected, None


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
        "argilla",
        _FIELDS,
        _read_argilla,
        "Argilla 1 and 2",
        "fields with a question and two answers, responses (or suggestions): a vote, or a ranking",
        known=_argilla_known,
    ),
    Format(
        "label_studio",
        ("data", "annotations"),
        _read_studio,
        "Label Studio",
        "data with a question and two answers, annotations of type pairwise",
        known=_studio_known,
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
