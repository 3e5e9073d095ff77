"""Rows as labelling tools write them: a question, two answers, and what annotators said of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, zip_longest
from typing import Any

from qdpo.data.messages import answer, messages_of, system_of
from qdpo.data.pairs import Message
from qdpo.data.pieces import BadRow, Row, Tie, number, quoted, text_of
from qdpo.data.schemas.judged import ordered, sides_of, winner
from qdpo.data.schemas.shape import Draw, Format, Parts, first_of

ASKED = ("prompt", "instruction", "question", "query", "input", "context", "chat", "conversation", "messages")
ANSWERS = ("response", "answer", "completion", "generation", "reply")
"""What the names of Argilla's fields begin with that hold an answer."""


def _names(columns: Iterable[Any]) -> str:
    return ", ".join(quoted(str(column)) for column in islice(columns, 10))


def _asked(fields: Row, column: str) -> list[Message]:
    said = fields[column]
    turns = messages_of(said, column) if isinstance(said, list) else [Message("user", text_of(fields, column))]
    return [*(system_of(fields) if turns[0].role != "system" else []), *turns]


# -- Argilla


def _argilla_known(row: Row) -> str | None:
    record = _record(row)
    if record is None or len(_answers(record["fields"])) != 2 or not first_of(record["fields"], ASKED):
        return None
    if "fields" in row:
        return f"columns fields ({_names(row['fields'])}), responses: a record of Argilla"
    questions = (*record["responses"], *record["suggestions"])
    return f"columns {_names((*_answers(row), questions[0]))}: a record of Argilla" if questions else None


def _record(row: Row) -> Row | None:
    """A record of Argilla: its fields, responses and suggestions, which a dataset has as columns side by side."""
    if isinstance(row.get("fields"), Mapping):
        return row if "responses" in row else None
    responses: dict[str, Any] = {}
    suggestions: dict[str, Any] = {}
    for column, value in row.items():
        if column.endswith(".responses") and isinstance(row[column], list):  # Argilla 2
            statuses = row.get(f"{column}.status")
            said = zip_longest(value, statuses if isinstance(statuses, list) else [])
            responses[column.removesuffix(".responses")] = [{"value": v, "status": status} for v, status in said]
        elif isinstance(value, list) and value and all(map(_is_response, value)):  # Argilla 1
            responses[column] = row[column]
        elif column.endswith((".suggestion", "-suggestion")) and row[column] is not None:
            suggestions[column[: -len(".suggestion")]] = {"value": value}
    return {"fields": row, "responses": responses, "suggestions": suggestions}


def _is_response(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() >= {"user_id", "value", "status"}


def _answers(fields: Row) -> list[str]:
    """The fields of a record that hold an answer."""
    return sorted(
        name
        for name, said in fields.items()
        if name.lower().startswith(ANSWERS) and "." not in name and not isinstance(said, list | Mapping)
    )


def _said(given: Any) -> Iterator[Any]:
    """What was said to the questions about a record, but for what was discarded."""
    if isinstance(given, Mapping):  # Argilla 2: {question: [{value, user_id}]}
        for entries in given.values():
            for entry in entries if isinstance(entries, list) else [entries]:
                if isinstance(entry, Mapping) and entry.get("status") != "discarded":
                    yield entry.get("value")
    for entry in given if isinstance(given, list) else []:  # Argilla 1: [{values: {question: {value}}, status}]
        if not isinstance(entry, Mapping) or entry.get("status") == "discarded":
            continue
        if "question_name" in entry:
            yield entry.get("value")
        values = entry.get("values")
        for said in values.values() if isinstance(values, Mapping) else ():
            yield said.get("value") if isinstance(said, Mapping) else said


def _read_argilla(row: Row, draw: Draw) -> Parts:
    record = _record(row)
    fields = record["fields"] if record else {}
    names, asked = _answers(fields), first_of(fields, ASKED)
    if record is None or len(names) != 2 or asked is None:
        raise BadRow("`fields` is no question with two answers", "write the fields that other records have", "fields")
    said = list(_said(record["responses"])) or list(_said(record.get("suggestions")))
    if not said:
        raise Tie("nobody has said which is better", "annotate the record", "responses")
    found = sides_of(fields)
    marks = found[2] if found else ("1", "2")
    votes = [vote for value in said if (vote := _vote(value, (names[0], names[1]), marks)) is not None]
    if not votes:
        raise BadRow(
            "no question about the record says which of its two answers is better",
            "ask for a ranking, or for a label that names a field; a rating or a comment is none",
            "responses",
        )
    won = None if sum(votes) == 0 else int(sum(votes) < 0)
    chosen, rejected = ordered([answer(text_of(fields, name)) for name in names], won)
    return _asked(fields, asked), chosen, rejected, None


def _vote(value: Any, sides: tuple[str, str], marks: tuple[str, str]) -> int | None:
    """1 for the first answer, -1 for the second, 0 for a tie; None where something else was asked for."""
    if isinstance(value, list | Mapping):
        ranks = _ranks(value)
        first, second = (ranks.get(side) for side in sides)
        return None if first is None or second is None else (first < second) - (first > second)
    if not isinstance(value, str):
        return None  # a number rates something
    try:
        won = winner(value, sides, marks, "responses")
    except BadRow:
        return None
    return 0 if won is None else (1, -1)[won]


def _ranks(value: Any) -> dict[str, float | None]:
    """The places in a ranking, the smaller the better: of [{value, rank}], {value: [], rank: []} or names in order."""
    if isinstance(value, Mapping):
        names, places = value.get("value"), value.get("rank")
        if not isinstance(names, list) or not isinstance(places, list):
            return {}
        return {str(name): number(place) for name, place in zip(names, places, strict=False)}
    if all(isinstance(item, str) for item in value):
        return {name: float(place) for place, name in enumerate(value)}
    return {str(item.get("value")): number(item.get("rank")) for item in value if isinstance(item, Mapping)}


# -- Label Studio


def _studio_known(row: Row) -> str | None:
    data = row.get("data")
    if isinstance(data, Mapping) and isinstance(row.get("annotations"), list) and len(_studio_sides(data)) == 2:
        return f"columns data ({_names(data)}), annotations: a task of Label Studio"
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
    names, asked = _studio_sides(data), first_of(data, ASKED)
    if len(names) != 2 or asked is None:
        raise BadRow("`data` is no question with two answers", "write the fields that other tasks have", "data")
    results = list(_results(row.get("annotations")))
    if not results:
        raise Tie("nobody has compared the two answers", "annotate the task", "annotations")
    votes = [
        winner(result["value"].get("selected"), (names[0], names[1]), ("left", "right"), "annotations")
        for result in results
        if result.get("type") == "pairwise" and isinstance(result.get("value"), Mapping)
    ]
    if not votes:
        raise BadRow(
            "no annotation of the task compares its two answers",
            "qdpo reads annotations of type pairwise (the control tag Pairwise)",
            "annotations",
        )
    first, second = votes.count(0), votes.count(1)
    won = None if first == second else int(second > first)
    chosen, rejected = ordered([answer(text_of(data, name)) for name in names], won)
    return _asked(data, asked), chosen, rejected, None


def _results(annotations: Any) -> Iterator[Row]:
    for annotation in annotations if isinstance(annotations, list) else []:
        if isinstance(annotation, Mapping) and not annotation.get("was_cancelled"):
            results = annotation.get("result")
            yield from (r for r in results if isinstance(r, Mapping)) if isinstance(results, list) else ()


LABELLED_FORMATS = (
    Format(
        "argilla",
        ("fields", "responses"),
        _read_argilla,
        "Argilla 1 and 2, as records and as datasets",
        "fields with a question and two answers, responses (or suggestions): a vote, or a ranking; or all of them as "
        "columns",
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
)
"""The formats of this file, the more specific one of two first."""
