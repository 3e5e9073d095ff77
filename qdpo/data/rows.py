"""The rows of one source, one by one: recognised, mapped and checked, each a pair or the reason why it is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from qdpo.config.schema import DataSection
from qdpo.data.counts import Counted
from qdpo.data.files.readers import Broken
from qdpo.data.files.sources import Source
from qdpo.data.named import NAMES
from qdpo.data.pairs import Message, Pair
from qdpo.data.pieces import BadRow, type_in_words
from qdpo.data.quality.clean import cleaned
from qdpo.data.report import DataReport
from qdpo.data.schemas.formats import names_of
from qdpo.data.schemas.reader import RowReader
from qdpo.errors import ConfigError
from qdpo.foreign import shortened, shown, visible
from qdpo.redact import redact

RECOGNISED_BY = 20
"""Rows that decide on the format."""
BATCH = 256
"""Rows that are given at once."""
EXAMPLE = 100
"""Characters of an example."""

Found = list[tuple[Any, Pair]]
"""Rows, each with the pair that became of it."""


class Rows:
    """One source, opened.

    Args:
        config: the `data` section.
        source: the rows.
        format: data.format for this source.
        limit: rows to read; None reads all.
        system: system message for rows that bring none.
        seed: decides on rejected answers that are drawn.
        plain: whether conversations are written as plain text, which has no place for roles.
        mixed: whether the source is a further one of a mixture, whose rows are named with it.

    Raises:
        DataError: the source is damaged, or its format is not known.
        ConfigError: data.columns names a column that is not there.
    """

    def __init__(
        self,
        config: DataSection,
        source: Source,
        format: str,
        limit: int | None,
        *,
        system: str | None,
        seed: int,
        plain: bool,
        mixed: bool = False,
    ) -> None:
        self.config, self.source, self.system, self.plain, self.mixed = config, source, system, plain, mixed
        self.reader: RowReader | None = None
        self._rows = islice(source.numbered(), limit)
        self._head = list(islice(self._rows, RECOGNISED_BY))
        if usable := [row for _, row in self._head if isinstance(row, dict)]:
            self._check_columns(usable)
            self.reader = RowReader(
                usable,
                source.label,
                format,
                columns=config.columns,
                ignore=config.ignore,
                plain=plain,
                special_text=config.special_text,
                system=system,
                seed=seed,
                ties=config.ties,
            )
            if source.read_as:
                self.reader.reason += f"; {source.read_as}"

    def label(self, number: int) -> int | str:
        """What a row is named by in a report."""
        return f"{self.source.label}:{number}" if self.mixed else number

    def batches(self, report: DataReport) -> Iterator[Found]:
        """The pairs, some at a time; rows that cannot become one are left out in the report.

        Raises:
            DataError: the source is damaged further on.
            ConfigError: data.template is none, and a row says who speaks.
        """
        if not report.format and self.reader:
            report.format, report.format_reason = self.reader.format.name, self.reader.reason
        numbered = chain(self._head, self._rows)
        rows = enumerate(self.reader.items(numbered) if self.reader else numbered)
        while batch := list(islice(rows, BATCH)):
            found: Found = []
            for place, (number, row) in batch:
                report.rows_read += 1
                try:
                    pair, mended = cleaned(self._pair(row, place, number), self.config.clean)
                except BadRow as bad:
                    self.leave_out(report, number, row, bad)
                    continue
                self._check_roles(row, pair)
                found.append((row, pair))
                for mend in mended:
                    report.cleaned.setdefault(mend, Counted()).add(self.label(number))
            yield found
        if self.reader:
            report.count_unread(self.reader.unread)

    def leave_out(self, report: DataReport, number: int, row: Any, bad: BadRow) -> None:
        """Count a row that is none of the run's, with what it looks like where it is the first of its kind."""
        field = self.config.columns.get(bad.field, bad.field)
        report.leave_out(self.label(number), bad, field, lambda: example_of(row, bad))

    def _check_columns(self, rows: Sequence[dict[str, Any]]) -> None:
        present = {column: None for row in rows for column in row}
        for ours, theirs in self.config.columns.items():
            if theirs not in present:
                raise ConfigError(
                    f"data.columns: {self.source.label} has no column `{theirs}` (for `{ours}`)",
                    f"its columns are {names_of(sorted(map(str, present)))}",
                )

    def _pair(self, row: Any, place: int, number: int) -> Pair:
        row = with_columns(row, OBJECT)
        if self.reader is None:
            raise BadRow("the row comes after rows of which none is an object with columns", OBJECT)
        return self.reader.pair(row, place, number)

    def _check_roles(self, row: dict[str, Any], pair: Pair) -> None:
        """Refuse to write a conversation as plain text, where nobody can tell who says what."""
        if not self.plain or not has_roles(row, pair.prompt, self.system):
            return
        raise ConfigError(
            f"data.template: none writes plain text without roles, and {self.source.unit} {self.label(pair.row)} is "
            "a conversation",
            f"set data.template=auto (the tokenizer's own template) or one of {NAMES}; for plain text give "
            "prompt, chosen and rejected as texts",
        )


def with_columns(row: Any, fix: str) -> dict[str, Any]:
    """A row that is an object with columns.

    Args:
        row: as it was read.
        fix: what to do about one that is something else.

    Raises:
        BadRow: it could not be read, or is something else.
    """
    if isinstance(row, Broken):
        raise BadRow(row.reason, row.fix, example=row.example)
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow(f"the row is {type_in_words(row)}, expected an object with columns", fix)
    return row


OBJECT = "write an object: {prompt: ..., chosen: ..., rejected: ...}"


def example_of(row: Any, bad: BadRow) -> str:
    """What is wrong with a row, for a person: what its fault says, else the column at fault, else the row.

    Args:
        row: columns already renamed.
        bad: its fault.
    """
    if bad.example is not None:
        return visible(redact(bad.example))
    if not isinstance(row, dict):
        return _excerpt(row)
    field = next((name for name in bad.field.split(", ") if name in row), None)
    return _excerpt(row if field is None else row[field])


def _excerpt(value: Any) -> str:
    # a token that the first cut halves lies in the middle, which the second cut takes out
    return shortened(redact(shown(value, 20 * EXAMPLE)), EXAMPLE)


def has_roles(row: Mapping[str, Any], prompt: Sequence[Message], added: str | None) -> bool:
    """Whether a row says who speaks: by messages with roles, or by more than a question.

    Args:
        row: as it was read.
        prompt: what became of its prompt.
        added: the system message that data.system adds, which is not the row's.
    """
    turns = [message for message in prompt if message.content and (message.role, message.content) != ("system", added)]
    messages = (item for value in row.values() if isinstance(value, list) for item in value)
    return len(turns) > 1 or any(isinstance(item, Mapping) and {"role", "from"} & item.keys() for item in messages)
