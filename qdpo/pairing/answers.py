"""Several answers to each prompt: what `qdpo pairs generate` writes, and whatever other file can be voted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from qdpo import console
from qdpo.data.files.sources import find_source
from qdpo.data.pieces import BadRow, Row, type_in_words
from qdpo.data.report import DataReport
from qdpo.data.rows import RECOGNISED_BY
from qdpo.data.schemas.reader import RowReader
from qdpo.data.schemas.shape import first_of
from qdpo.errors import DataError
from qdpo.grammar import agreed, counted
from qdpo.pairing.pieces import ANSWERS, Prompt, answer_of, asked
from qdpo.pairing.reading import settle, understood

TEXT = ("text", "content", "completion", "response", "answer")


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        text: what it says.
        by: who wrote it; empty where that is not known.
        ended: False where it was cut at a limit.
    """

    text: str
    by: str = ""
    ended: bool = True

    @classmethod
    def of(cls, value: Any, column: str) -> Answer:
        """An answer of a file: a text, or an object with `text` and perhaps `by`.

        Raises:
            BadRow: it is neither.
        """
        name = first_of(value, TEXT) if isinstance(value, Mapping) and "role" not in value else None
        if name is None:
            return cls(answer_of(value, column))
        return cls(answer_of(value[name], column), str(value.get("by") or ""), value.get("ended") is not False)

    def line(self) -> dict[str, Any]:
        """As a line of a file has it."""
        by = {"by": self.by} if self.by else {}
        return {"text": self.text, **by, **({} if self.ended else {"ended": False})}


@dataclass(frozen=True)
class Answered:
    """A prompt and the different answers to it."""

    prompt: Prompt
    answers: tuple[Answer, ...]


def read_answers(name: str, *, drop: bool = False) -> list[Answered]:
    """The prompts of a file with their answers, identical answers once; preference pairs are two answers.

    Args:
        name: a local file or folder, or a hub dataset.
        drop: leave out rows that are at fault, instead of an error.

    Raises:
        DataError: rows are at fault, or nothing can be voted on.
        QdpoError: the file cannot be read.
    """
    source = find_source(name)
    rows = list(source.numbered())
    report = DataReport(source.label, rows_read=len(rows), unit=source.unit)
    usable = list(islice((row for _, row in rows if isinstance(row, dict)), RECOGNISED_BY))
    reader = None
    if usable and not any(first_of(row, ANSWERS) for row in usable):
        reader = RowReader(usable, source.label)
        rows = list(reader.items(rows))
        report.rows_read = len(rows)

    def read(row: dict[str, Any]) -> Answered:
        if reader is None:
            return _answered(row)
        pair = reader.pair(row, 0)
        return Answered(
            pair.prompt, (Answer(pair.chosen[0].content, "chosen"), Answer(pair.rejected[0].content, "rejected"))
        )

    entries = list(understood(rows, report, read))
    settle(report, drop)
    found = list(dict.fromkeys(entries))
    again = len(entries) - len(found)
    if again:
        once = "the same as an earlier one, and shown once"
        console.note(counted(again, f"row is {once}", f"rows are {once}"))
    alone = sum(len(entry.answers) < 2 for entry in found)
    if alone:
        prompts = f"{counted(len(found), 'prompt')} {agreed(alone, 'has', 'have')}"
        console.note(f"{alone:,} of {prompts} one answer only: there is nothing to compare")
    if alone == len(found):
        raise DataError(
            f"{source.label}: no prompt with two answers in {counted(len(rows), 'row')}",
            "qdpo pairs generate writes such a file; a row is a prompt and a list `answers`",
        )
    return found


def _answered(row: Row) -> Answered:
    column = first_of(row, ANSWERS)
    if column is None:
        raise BadRow("no list of answers", "add a column `answers`: [text, text]")
    items = row[column]
    if not isinstance(items, Sequence) or isinstance(items, str) or not items:
        raise BadRow(
            f"`{column}` is {type_in_words(items) if items or items is None else 'empty'}, expected a list of answers",
            "write a list: [text, text]",
            column,
        )
    prompt, _ = asked(row)
    different: dict[str, Answer] = {}
    for item in items:
        found = Answer.of(item, column)
        different.setdefault(found.text, found)
    return Answered(prompt, tuple(different.values()))
