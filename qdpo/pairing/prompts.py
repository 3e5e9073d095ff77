"""Reading prompts: a text line each, rows with `prompt` or `messages`, or the prompts of preference data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from qdpo import console
from qdpo.data.files.kinds import EXTENSIONS
from qdpo.data.files.sources import find_source
from qdpo.data.messages import answer, check_turns
from qdpo.data.pieces import BadRow
from qdpo.data.report import DataReport
from qdpo.data.rows import RECOGNISED_BY
from qdpo.data.schemas.formats import names_of
from qdpo.data.schemas.reader import RowReader
from qdpo.data.schemas.shape import first_of
from qdpo.errors import DataError, InputMissingError
from qdpo.grammar import agreed, counted
from qdpo.pairing.pieces import PROMPT, Prompt, asked
from qdpo.pairing.reading import settle, understood

TEXTS = frozenset({".txt", ".text", ".md", ""})
"""Extensions of files whose lines are prompts."""


def read_prompts(name: str, *, limit: int | None = None, drop: bool = False) -> list[Prompt]:
    """The different prompts of a file, in its order.

    Args:
        name: a local file or folder, a hub dataset, or `quickstart`.
        limit: prompts at the most.
        drop: leave out rows that are at fault, instead of an error.

    Raises:
        DataError: rows are at fault, or there is no prompt.
        QdpoError: the file cannot be read.
    """
    path = Path(name).expanduser()
    is_text = path.is_file() and not set(path.suffixes) & EXTENSIONS and path.suffix.lower() in TEXTS
    label, unit, rows = (name, "line", _lines(path)) if is_text else _rows(name)
    reader = _reader([row for _, row in rows], label)
    if reader is not None:
        rows = list(reader.items(rows))
    report = DataReport(label, rows_read=len(rows), unit=unit)
    prompts = list(understood(rows, report, lambda row: _prompt(row, reader)))
    settle(report, drop)
    found = list(dict.fromkeys(prompts))
    again = len(prompts) - len(found)
    if not found:
        raise DataError(f"{label} has no prompt", "a line of text each, or JSONL with `prompt` or `messages`")
    if again:
        rest = agreed(again, "is the same as an earlier one, and is", "are the same as an earlier one, and are")
        console.note(f"{again:,} of {counted(len(rows), 'prompt')} {rest} asked once")
    return found[:limit]


def _lines(path: Path) -> list[tuple[int, Any]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputMissingError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: {error.reason} at byte {error.start}", "convert it, with iconv"
        ) from None
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _rows(name: str) -> tuple[str, str, list[tuple[int, Any]]]:
    source = find_source(name)
    return source.label, source.unit, list(source.numbered())


def _reader(rows: Sequence[Any], label: str) -> RowReader | None:
    """What reads rows of preference data; None for rows of prompts.

    Raises:
        DataError: they are neither.
    """
    usable = [row for row in islice(rows, RECOGNISED_BY) if isinstance(row, dict)]
    try:
        return RowReader(usable, label) if usable else None
    except DataError:
        if not any(first_of(row, PROMPT) for row in usable):
            columns = names_of(dict.fromkeys(str(column) for row in usable for column in row))
            raise DataError(
                f"{label}: no prompts are known by the columns {columns}", "name the column `prompt` or `messages`"
            ) from None
    return None


def _prompt(row: dict[str, Any], reader: RowReader | None) -> Prompt:
    if reader is None:
        return asked(row)[0]
    prompt = reader.prompt(row)
    if not prompt:
        raise BadRow("the pair has no prompt", "there is nothing to ask: take the row out", "prompt")
    check_turns(prompt, answer("-"), answer("-"))
    return tuple(prompt)
