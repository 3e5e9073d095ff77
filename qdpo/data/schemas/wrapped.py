"""Conversations that a file holds as text: JSON, or what Python and NumPy print, as CSV keeps a column of lists."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qdpo.data.messages import SAID_IN
from qdpo.data.pieces import BadRow, Row

LARGEST = 1 << 20
"""Characters of a text that is looked at for being a list."""
LOST_COMMA = re.compile(r"\}\s*\n\s*\{")
"""Between two messages of a printed NumPy array; inside of texts, Python prints a line's end as `\\n`."""
ARRAY = re.compile(r"array\((\[.*?\])(?:,\s*dtype=object)?\)", re.DOTALL)
TWICE = ('"[', '"{')
"""How a text begins that was written as JSON twice."""
LIKE = re.compile(r"\s*(?:array\()?[\[{]\s*[\[{]?\s*['\"](?:role|from|content|value|human|text)['\"]\s*:")


def messages_in(text: str) -> Any:
    """The message or list of messages that a text is, as JSON or as Python writes it; None if it is something else."""
    if len(text) > LARGEST:
        return None
    if text.startswith(TWICE):
        try:
            text = json.loads(text)
        except ValueError:
            return None
    if not LIKE.match(text):
        return None
    for attempt in (text, LOST_COMMA.sub("}, {", ARRAY.sub(r"\1", text))):
        for parse in (json.loads, ast.literal_eval):
            try:
                found = parse(attempt.strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            return found if _are_messages(found) else None
    return None


def _are_messages(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(
        isinstance(item, Mapping) and {"role", "from"} & item.keys() and set(SAID_IN) & item.keys() for item in items
    )


def wrapped_columns(rows: Sequence[Row]) -> frozenset[str]:
    """The columns that hold messages as text in every row that has text there."""
    columns = {column for row in rows for column, value in row.items() if isinstance(value, str)}
    return frozenset(
        column
        for column in columns
        if all(
            messages_in(value) is not None
            for row in rows
            if isinstance(value := row.get(column), str) and value.strip()
        )
        and any(isinstance(row.get(column), str) and row[column].strip() for row in rows)
    )


def unwrapped(row: Row, columns: frozenset[str]) -> dict[str, Any]:
    """The row with its texts of messages as messages.

    Raises:
        BadRow: a text cannot be read back.
    """
    found = dict(row)
    for column in columns & row.keys():
        value = row[column]
        if not isinstance(value, str) or not value.strip():
            continue
        found[column] = messages_in(value)
        if found[column] is None:
            raise BadRow(
                f"`{column}` is no list of messages written as text, as in other rows",
                "write JSON Lines or Parquet instead of CSV, which has no lists",
                column,
            )
    return found
