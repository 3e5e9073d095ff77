"""Recognising the shape of a preference dataset by its columns."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qdpo.data.messages import SYSTEM
from qdpo.data.pieces import SCORES, Row, number, quoted
from qdpo.data.schemas import BY_NAME, FORMATS
from qdpo.data.schemas.columns import ASKED, SIDES, TALKED
from qdpo.data.schemas.judged import VERDICTS
from qdpo.data.schemas.others import what_else
from qdpo.data.schemas.shape import Format
from qdpo.errors import ConfigError, DataError
from qdpo.foreign import SHORT, shortened, visible

OURS = sorted(
    {column for format in FORMATS for column in format.columns}
    | {"input", "history", *SYSTEM, *ASKED, *TALKED, *sum(SIDES, ()), *sum(SCORES, ()), *VERDICTS}
)
"""The columns that qdpo looks for; what data.columns may map."""

# What people call the three columns, for a hint where nothing was recognised.
SYNONYMS = {
    "prompt": ("question", "instruction", "query", "input", "context", "user", "messages", "conversation"),
    "chosen": ("accepted", "good", "better", "winner", "preferred", "positive", "response_chosen", "chosen_answer"),
    "rejected": ("bad", "worse", "loser", "dispreferred", "negative", "reject", "response_rejected"),
}
LIKE = {
    "prompt": re.compile("prompt|question|query|instruct|request|context"),
    "chosen": re.compile(
        r"^(?!.*(reject|disp|non_?pref|unpref|worse)).*(chosen|accept|prefer|better|best|good|win|posit)"
    ),
    "rejected": re.compile("reject|dispref|non_?pref|unpref|worse|worst|bad|lose|losing|negat"),
}
"""What the names of columns look like that hold these."""
NEVER = re.compile(
    r"score|rating|reward|rank|label|(^|_)id$|^id_|model|source|policy|logp|margin|reason|preference|_by$"
)


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
        DataError: no known format fits, or rows of one can be read in two ways; says what the rows are instead, or
            which columns they have.
    """
    if wanted != "auto":
        return _undoubted(BY_NAME[wanted], rows, source), "set by data.format"
    found = [(reasons, format) for format in FORMATS if (reasons := [r for row in rows if (r := format.known_by(row))])]
    if found:
        reasons, format = max(found, key=lambda entry: len(entry[0]))
        return _undoubted(format, rows, source), reasons[0]
    columns = list(dict.fromkeys(str(column) for row in rows for column in row))
    message = f"{source}: no known preference format has the columns {names_of(map(quoted, columns)) or '(none)'}"
    if else_ := what_else(rows, source):
        raise DataError(f"{message}: {else_[0]}", else_[1])
    guess = _guess(rows)
    tidy = {column: re.sub(r"\W+", "_", column.strip().lower()) for column in columns}
    tidied = [{tidy[str(column)]: value for column, value in row.items()} for row in rows]
    if "YOUR_COLUMN" in guess and any(format.known_by(row) for format in FORMATS for row in tidied):
        renamed = names_of(name for column, name in tidy.items() if column != name)
        raise DataError(message, f"write the names of columns in small letters, with _ for other signs: {renamed}")
    raise DataError(message, f"name the columns: `data.columns={{{guess}}}`, or set data.format")


def _undoubted(format: Format, rows: Sequence[Row], source: str) -> Format:
    if format.doubt and (doubt := format.doubt(rows)):
        raise DataError(f"{source}: {doubt[0]}", doubt[1])
    return format


def names_of(columns: Iterable[str]) -> str:
    """The names of columns for a message, as many and as much of each as it can hold."""
    names = [visible(shortened(str(column), SHORT)) for column in columns]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _guess(rows: Sequence[Row]) -> str:
    """The most likely mapping of a dataset's own column names; what holds no text or messages is never offered."""
    free = list(dict.fromkeys(str(column) for row in rows for column in row if _may_be_said(column, row[column])))
    mapping = []
    for ours, names in SYNONYMS.items():
        if ours in free:
            free.remove(ours)
            continue
        lowered = [(column, column.lower()) for column in free]
        close = [column for column, low in lowered if low in names]
        close = close or [column for column, low in lowered if LIKE[ours].search(low)]
        close = close or difflib.get_close_matches(ours, free, n=1, cutoff=0.75)
        free = [column for column in free if column not in close[:1]]
        mapping.append(f"{ours}: {names_of(map(quoted, close[:1])) or 'YOUR_COLUMN'}")
    return ", ".join(mapping)


def _may_be_said(column: Any, value: Any) -> bool:
    """Whether a column may hold a question or an answer: text or messages, not a score, a label or a name."""
    texts = value if isinstance(value, list) else [value]
    said = any((isinstance(t, str) and number(t) is None) or isinstance(t, Mapping) for t in texts)
    return said and not NEVER.search(str(column).lower())


def keeps_ties(ties: str, format: Format) -> bool:
    """Whether rows with equal scores stay: `data.ties`, whose auto leaves them out where the score makes the pair."""
    return ties == "keep" or (ties == "auto" and not format.by_score)
