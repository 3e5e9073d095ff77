"""Recognising the shape of a preference dataset, and bringing its rows to `Pair`."""

from __future__ import annotations

import difflib
import random
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qdpo.data.pairs import Message, Pair
from qdpo.data.pieces import SCORES, Row, Tie, check_turns, same_answers
from qdpo.data.schemas import BY_NAME, FORMATS, MADE_BY_SCORE, Format
from qdpo.errors import ConfigError, DataError
from qdpo.foreign import SHORT, shortened, visible

OURS = sorted({column for format in FORMATS for column in format.columns} | {"system", "input"} | set(sum(SCORES, ())))
"""The columns that qdpo looks for; what data.columns may map."""

# What people call the three columns, for a hint where nothing was recognised.
SYNONYMS = {
    "prompt": ("question", "instruction", "query", "input", "context", "user"),
    "chosen": ("accepted", "good", "better", "winner", "preferred", "positive", "response_chosen", "chosen_answer"),
    "rejected": ("bad", "worse", "loser", "dispreferred", "negative", "reject", "response_rejected"),
}


@dataclass(frozen=True)
class Reading:
    """How rows are read beyond their format.

    Attributes:
        system: system message for rows that bring none; None adds none, an empty text an empty one.
        seed: decides which answer is the rejected one where several could be.
        keep_ties: whether rows whose two scores are equal stay.
    """

    system: str | None = None
    seed: int = 0
    keep_ties: bool = True


def check_columns(columns: Mapping[str, str]) -> None:
    """Refuse a data.columns that maps a column qdpo never reads.

    Raises:
        ConfigError: an unknown name, or two names for one column.
    """
    for ours in columns:
        if ours not in OURS:
            close = difflib.get_close_matches(ours, OURS, n=1)
            hint = f"did you mean `{close[0]}`? " if close else ""
            raise ConfigError(
                f"data.columns: `{ours}` is not a column that qdpo reads",
                f"{hint}The key is qdpo's name, the value your column's: `columns: {{prompt: question}}`",
            )
    if len(set(columns.values())) < len(columns):
        raise ConfigError("data.columns gives one column two names", "each of your columns can be used once")


def rename(row: Row, columns: Mapping[str, str]) -> Row:
    """A row with the columns that data.columns names under qdpo's names."""
    if not columns:
        return row
    names = {theirs: ours for ours, theirs in columns.items()}
    return {names.get(column, column): value for column, value in row.items() if column not in columns} | {
        ours: row[theirs] for ours, theirs in columns.items() if theirs in row
    }


def recognise(rows: Sequence[Row], wanted: str, source: str) -> tuple[Format, str]:
    """The format of a dataset, from its first rows, and the reason.

    Args:
        rows: a few rows, columns already renamed; not empty.
        wanted: data.format; `auto` recognises.
        source: the dataset's name, for the message.

    Returns:
        The format that most of the rows have (the more specific one of two), and what it was known by.

    Raises:
        DataError: no known format fits.
    """
    if wanted != "auto":
        return BY_NAME[wanted], "set by data.format"
    found = [(reasons, format) for format in FORMATS if (reasons := [r for row in rows if (r := format.known_by(row))])]
    if found:
        reasons, format = max(found, key=lambda entry: len(entry[0]))
        return format, reasons[0]
    columns = list(dict.fromkeys(str(column) for row in rows for column in row))
    raise DataError(
        f"{source}: no known preference format has the columns {names_of(columns) or '(none)'}",
        _made_by(frozenset(columns), source)
        or f"name the columns: `data.columns={{{_guess(columns)}}}`, or set data.format",
    )


def _made_by(columns: frozenset[str], source: str) -> str:
    """The command that makes pairs of a file that has none yet; empty where none does."""
    file = shlex.quote(source)
    if {"comparison", "vote"} <= columns:
        return f"these are votes: qdpo pairs from-ratings {file} --out pairs.jsonl makes pairs of them"
    if columns.isdisjoint({"chosen", "rejected"}) and columns & {"label", "score", "rating", "edited"}:
        return f"these are ratings: qdpo pairs from-ratings {file} --out pairs.jsonl makes pairs of them"
    if "answers" in columns:
        return f"these are answers that nobody has compared yet: qdpo pairs vote {file}"
    return ""


def names_of(columns: Iterable[str]) -> str:
    """The names of columns for a message, as many and as much of each as it can hold."""
    names = [visible(shortened(str(column), SHORT)) for column in columns]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _guess(columns: Sequence[str]) -> str:
    """The most likely mapping of a dataset's own column names."""
    mapping = []
    free = [column for column in columns if column not in SYNONYMS]
    for ours, names in SYNONYMS.items():
        if ours in columns:
            continue
        exact = [column for column in free if column.lower() in names]
        close = exact or difflib.get_close_matches(ours, free, n=1, cutoff=0.6)
        mapping.append(f"{ours}: {names_of(close) or 'YOUR_COLUMN'}")
    return ", ".join(mapping)


def to_pair(row: Row, place: int, format: Format, reading: Reading, number: int | None = None) -> Pair:
    """One row as a `Pair`.

    Args:
        row: the row, columns already renamed.
        place: among the rows of its source, from 0; decides what is drawn.
        format: how to read it.
        reading: system message, seed, ties.
        number: what the pair is named by; its place where there is none.

    Raises:
        Tie: both answers have the same score, and ties are left out.
        BadRow: with the reason.
    """
    prompt, chosen, rejected, scores = format.read(row, lambda n: _draw(reading.seed, place, n))
    check_turns(prompt, chosen, rejected)
    if chosen == rejected:
        raise same_answers()
    if scores and scores[0] == scores[1] and not reading.keep_ties:
        raise Tie(
            "chosen and rejected have the same score", "none is needed: nothing is preferred, see data.ties", "scores"
        )
    if reading.system is not None and prompt and prompt[0].role != "system":
        prompt = [Message("system", reading.system), *prompt]
    return Pair(place if number is None else number, tuple(prompt), tuple(chosen), tuple(rejected), scores)


def _draw(seed: int, place: int, n: int) -> int:
    """A choice that depends on the seed and the row alone, whatever else was read."""
    return random.Random(f"{seed}/{place}").randrange(n)


def keeps_ties(ties: str, format: Format) -> bool:
    """Whether rows with equal scores stay: `data.ties`, whose auto leaves them out where the score makes the pair."""
    return ties == "keep" or (ties == "auto" and format.name not in MADE_BY_SCORE)
