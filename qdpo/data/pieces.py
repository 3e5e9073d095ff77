"""The pieces that rows of every schema are read with: texts, scores, and the reason why a row cannot be used.

Whatever cannot be used raises `BadRow` with the reason and the column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from qdpo.foreign import SHORT, shortened, shown

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


KINDS = {"NoneType": "null", "str": "text", "int": "a number", "float": "a number", "bool": "true or false"}
KINDS |= {"list": "a list", "tuple": "a list", "dict": "an object"}
AROUND = 30
"""Characters on either side of what is shown of a text."""

PLAIN = re.compile(r"[\w./-]+(:[\w./-]+)*")
"""Names that need no quotes."""

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


def quoted(column: str) -> str:
    """The name of a column for a hint, in quotes where YAML or a reader needs them."""
    return shortened(column, SHORT) if PLAIN.fullmatch(column) else shown(column)


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
    return checked(value, column, empty_ok)


def checked(text: str, column: str, empty_ok: bool = False, where: str = "") -> str:
    """The text, which may only be empty if `empty_ok`, and has no half characters; `where` in the column it is from."""
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
