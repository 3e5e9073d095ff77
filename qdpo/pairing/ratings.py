"""Reading what people thought of answers: scores, thumbs, edits and votes, whatever the columns are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdpo.data.pieces import BadRow, Row, Tie, number, type_in_words
from qdpo.data.schemas.formats import names_of
from qdpo.data.schemas.shape import first_of
from qdpo.errors import DataError
from qdpo.pairing.pieces import ANSWER, ANSWERS, PROMPT, Prompt, answer_of, asked
from qdpo.pairing.votes import UNDO, Vote

TEXT = (*ANSWER, "text", "content")
SCORE = ("score", "rating", "stars", "reward", "overall_score")
SCORES = ("scores", "ratings", "rewards", "labels")
LABEL = ("label", "thumbs", "thumb", "feedback", "liked")
ORIGINAL = ("original", "before", *ANSWER)
EDITED = ("edited", "edit", "corrected", "correction", "revised", "after")
UP = frozenset(
    {"true", "1", "1.0", "+1", "up", "thumbs_up", "thumbsup", "good", "like", "liked", "yes", "positive", "👍"}
)
DOWN = frozenset(
    {"false", "0", "0.0", "-1", "-1.0", "down", "thumbs_down", "thumbsdown", "bad", "dislike", "disliked", "no"}
    | {"negative", "👎"}
)


class NotRated(Tie):
    """An answer that nobody has rated: no fault of the row."""


@dataclass(frozen=True)
class Rating:
    """What somebody thinks of one answer; the higher the better.

    Attributes:
        prompt: the conversation before the answer.
        answer: its text.
        score: a thumb is 1 (up) or 0 (down).
    """

    prompt: Prompt
    answer: str
    score: float


@dataclass(frozen=True)
class Better:
    """Of two answers to one prompt, which is better."""

    prompt: Prompt
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Shape:
    """A shape of rated rows.

    Attributes:
        name: scores, thumbs, edits or votes.
        known_by: the columns by which a row is known to have it; None if it has not.
        read: what a row says.
    """

    name: str
    known_by: Callable[[Row], tuple[str, ...] | None]
    read: Callable[[Row], list[Rating | Better]]


def _columns(*wanted: Sequence[str]) -> Callable[[Row], tuple[str, ...] | None]:
    """Knows rows that have one of the names of each kind."""

    def known(row: Row) -> tuple[str, ...] | None:
        found: list[str] = []
        for names in wanted:
            # one column cannot be two things
            name = first_of({key: value for key, value in row.items() if key not in found}, names)
            if name is None:
                return None
            found.append(name)
        return tuple(found)

    return known


def _answered(row: Row) -> tuple[Prompt, str]:
    prompt, said = asked(row)
    column = first_of(row, ANSWER)
    if column is not None:
        said = answer_of(row[column], column)
    if said is None:
        raise BadRow(
            "the conversation ends with its question, and there is no answer",
            "add the answer to `messages`",
            "messages",
        )
    return prompt, said


def _score(value: Any, column: str) -> float:
    if value is None or value == "":
        raise NotRated("not rated")
    found = number(value)
    if found is None:
        raise BadRow(f"`{column}` is not a number", "write a number, or null for what is not rated", column)
    return found


def _thumb(value: Any, column: str) -> float:
    if value is None or value == "":
        raise NotRated("not rated")
    said = str(value).strip().lower()
    if said in UP:
        return 1.0
    if said in DOWN:
        return 0.0
    if number(value) is not None:
        raise BadRow(f"`{column}` is a number, neither up nor down", f"of scores: --column score={column}", column)
    raise BadRow(f"`{column}` is neither up nor down", "true or false, 1 or 0, up or down", column)


def _read_scores(row: Row) -> list[Rating | Better]:
    column = first_of(row, SCORE) or "score"
    return [Rating(*_answered(row), _score(row[column], column))]


def _read_thumbs(row: Row) -> list[Rating | Better]:
    column = first_of(row, LABEL) or "label"
    return [Rating(*_answered(row), _thumb(row[column], column))]


def _read_edits(row: Row) -> list[Rating | Better]:
    edited = first_of(row, EDITED) or "edited"
    original = first_of(row, ORIGINAL)
    before = _answered(row)[1] if original is None else answer_of(row[original], original)
    if row[edited] is None or row[edited] == "":
        raise NotRated("not edited")
    after = answer_of(row[edited], edited)
    if after == before:
        raise NotRated("not edited: both texts are the same")
    return [Better(asked(row)[0], after, before)]


def _scored_list_known(row: Row) -> tuple[str, ...] | None:
    prompt, column = first_of(row, PROMPT), first_of(row, ANSWERS)
    if prompt is None or column is None or not isinstance(row[column], list):
        return None
    if scores := first_of(row, SCORES):
        return prompt, column, scores
    inside = next((item for item in row[column] if isinstance(item, Mapping) and first_of(item, SCORE)), None)
    return None if inside is None else (prompt, f"{column} with {first_of(inside, SCORE)}")


def _read_scored_list(row: Row) -> list[Rating | Better]:
    prompt, _ = asked(row)
    column, scores = first_of(row, ANSWERS) or "answers", first_of(row, SCORES)
    items = row[column]
    if not isinstance(items, list):
        raise BadRow(f"`{column}` is {type_in_words(items)}, expected a list of answers", "write a list", column)
    if scores is not None:
        given = row[scores]
        if not isinstance(given, list) or len(given) != len(items):
            raise BadRow(
                f"`{scores}` has not a score for each of `{column}`", "one score for each, null where none", scores
            )
        items = [{"text": item, "score": score} for item, score in zip(items, given, strict=True)]
    found: list[Rating | Better] = []
    for item in items:
        name = first_of(item, SCORE) if isinstance(item, Mapping) else None
        text = first_of(item, TEXT) if isinstance(item, Mapping) else None
        if name is None or text is None:
            raise BadRow(f"`{column}` has an answer without text or score", "[{text: ..., score: ...}]", column)
        if item[name] is not None:
            found.append(Rating(prompt, answer_of(item[text], text), _score(item[name], name)))
    if not found:
        raise NotRated("not rated")
    return found


def _read_votes(row: Row) -> list[Rating | Better]:
    preferred = Vote.of(row).preferred()
    if preferred is None:
        raise Tie("a tie" if row["vote"] == "tie" else "skipped")
    return [Better(asked(row)[0], *preferred)]


SHAPES = (
    Shape("votes", _columns(["comparison"], ["vote"]), _read_votes),
    Shape("scores", _scored_list_known, _read_scored_list),
    Shape("edits", _columns(EDITED, PROMPT, ORIGINAL), _read_edits),
    Shape("edits", _columns(EDITED, ["messages", "conversations", "conversation"]), _read_edits),
    Shape("scores", _columns(PROMPT, ANSWER, SCORE), _read_scores),
    Shape("scores", _columns(["messages", "conversations", "conversation"], SCORE), _read_scores),
    Shape("thumbs", _columns(PROMPT, ANSWER, LABEL), _read_thumbs),
    Shape("thumbs", _columns(["messages", "conversations", "conversation"], LABEL), _read_thumbs),
)
RENAMED = ("prompt", "messages", "system", "completion", "score", "label", "original", "edited", "answers", "scores")
"""What --column may rename other columns to."""


def recognise(rows: Sequence[Row], source: str) -> tuple[Shape, str]:
    """The shape of a file, from its first rows, and the columns that it was known by.

    Raises:
        DataError: no shape fits.
    """
    counted = [(sum(shape.known_by(row) is not None for row in rows), shape) for shape in SHAPES]
    most, shape = max(counted, key=lambda entry: entry[0])
    if most:
        known = next(found for row in rows if (found := shape.known_by(row)))
        return shape, f"{shape.name}: columns {', '.join(known)}"
    columns = list(dict.fromkeys(str(column) for row in rows for column in row))
    message = f"{source}: no ratings are known by the columns {names_of(columns) or '(none)'}"
    if {"chosen", "rejected"} <= set(columns):
        raise DataError(message, f"these are pairs already: qdpo train --model MODEL --data {source}")
    if first_of(rows[0], ANSWERS):
        raise DataError(message, f"the answers have no scores; vote on them: qdpo pairs vote {source}")
    raise DataError(
        message,
        "a prompt and an answer with a score or with a label (up or down), or an original and its edit; name your "
        "columns: --column prompt=YOURS --column completion=YOURS --column score=YOURS",
    )


def standing(rows: Sequence[tuple[int, Any]]) -> tuple[list[tuple[int, Any]], int]:
    """The rows of a file of votes that were not taken back, and how many were."""
    kept: dict[str, tuple[int, Any]] = {}
    others: list[tuple[int, Any]] = []
    undone = 0
    for place, row in rows:
        if not isinstance(row, Mapping) or "comparison" not in row:
            others.append((place, row))
        elif row.get("vote") == UNDO:
            undone += kept.pop(str(row["comparison"]), None) is not None
        else:
            kept[str(row["comparison"])] = (place, row)
    return sorted([*kept.values(), *others], key=lambda entry: entry[0]), undone
