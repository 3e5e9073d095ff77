"""One pass over the rows of a dataset: recognise, map, check, tokenise, count. Nothing of a row stays in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from qdpo.config.schema import DataSection
from qdpo.data.contamination import EvaluationSet, texts_of
from qdpo.data.duplicates import NearDuplicates
from qdpo.data.formats import Reading, keeps_ties, recognise, rename, to_pair
from qdpo.data.named import NAMES
from qdpo.data.oddities import Oddities
from qdpo.data.pairs import Message, Pair
from qdpo.data.pieces import BadRow, Tie
from qdpo.data.readers import Broken
from qdpo.data.report import DataReport
from qdpo.data.schemas import Format
from qdpo.data.sources import Source
from qdpo.data.store import Builder
from qdpo.data.tokenise import CutAway, Tokeniser
from qdpo.errors import ConfigError

RECOGNISED_BY = 20
"""Rows that decide on the format."""
BATCH = 256
"""Pairs that are tokenised at once."""


class Ingest:
    """Reads sources into one `Builder` and one report.

    Args:
        config: the `data` section.
        tokeniser: makes ids.
        system: system message for rows that bring none.
        seed: decides on rejected answers that are drawn.
        builder: takes the pairs.
        sets: evaluation sets to compare with.
    """

    def __init__(
        self,
        config: DataSection,
        tokeniser: Tokeniser,
        system: str | None,
        seed: int,
        builder: Builder,
        sets: Sequence[EvaluationSet] = (),
    ) -> None:
        self.config, self.tokeniser, self.system, self.seed = config, tokeniser, system, seed
        self.builder, self.sets = builder, sets
        self.oddities, self.near = Oddities(), NearDuplicates()
        self.without_prompt = 0

    def read(self, source: Source, number: int, format: str, limit: int | None, report: DataReport) -> None:
        """Read one source; what is left out goes to the report.

        Args:
            source: the rows.
            number: of the source, for the records.
            format: data.format for this source.
            limit: rows to read; None reads all.
            report: is filled in.

        Raises:
            DataError: the source is damaged, or its format is not known.
            ConfigError: data.columns names a column that is not there.
        """
        label: Callable[[int], int | str] = (lambda row: row) if number == 0 else lambda row: f"{source.label}:{row}"
        rows = islice(source.rows(), limit)
        head = list(islice(rows, RECOGNISED_BY))
        found: Format | None = None
        reading = Reading()
        if usable := [row for row in head if isinstance(row, dict)]:
            self._check_columns(usable, source)
            found, reason = recognise([rename(row, self.config.columns) for row in usable], format, source.label)
            reading = Reading(self.system, self.seed, keeps_ties(self.config.ties, found))
            report.format, report.format_reason = report.format or found.name, report.format_reason or reason
        before = report.rows_read, len(self.builder)
        for batch in _batches(enumerate(chain(head, rows))):
            pairs = []
            for place, row in batch:
                report.rows_read += 1
                try:
                    pairs.append(pair := self._pair(row, place, found, reading))
                    self._check_roles(row, pair, label(place))
                except BadRow as bad:
                    detail = row.detail if isinstance(row, Broken) else ""
                    report.leave_out(label(place), str(bad), inherent=isinstance(bad, Tie), detail=detail)
            # Once the run cannot go on, the remaining rows are only counted.
            if not (report.faults and self.config.on_bad_row == "error"):
                self._take(pairs, number, report, label)
        report.sources.append(
            {
                "source": source.label,
                "format": found.name if found else "",
                "format_reason": reason if found else "",
                "rows_read": report.rows_read - before[0],
                "pairs": len(self.builder) - before[1],
            }
        )

    def _check_columns(self, rows: Sequence[dict[str, Any]], source: Source) -> None:
        present = {column for row in rows for column in row}
        for ours, theirs in self.config.columns.items():
            if theirs not in present:
                raise ConfigError(
                    f"data.columns: {source.label} has no column `{theirs}` (for `{ours}`)",
                    f"its columns are {', '.join(sorted(map(str, present)))}",
                )

    def _pair(self, row: Any, number: int, format: Format | None, reading: Reading) -> Pair:
        if isinstance(row, Broken):
            raise BadRow(row.reason)
        if not isinstance(row, dict):
            raise BadRow(f"the row is {type(row).__name__}, expected an object with columns")
        if format is None:
            raise BadRow("the row comes after rows of which none is an object with columns")
        return to_pair(rename(row, self.config.columns), number, format, reading)

    def _check_roles(self, row: dict[str, Any], pair: Pair, place: int | str) -> None:
        """Refuse to write a conversation as plain text, where nobody can tell who says what.

        Raises:
            ConfigError: data.template is none, and the row has roles.
        """
        if self.tokeniser.template.source is not None or not has_roles(row, pair.prompt, self.system):
            return
        raise ConfigError(
            f"data.template: none writes plain text without roles, and row {place} is a conversation",
            f"set data.template=auto (the tokenizer's own template) or one of {NAMES}; for plain text give "
            "prompt, chosen and rejected as texts",
        )

    def _take(self, pairs: Sequence[Pair], source: int, report: DataReport, label: Callable[[int], int | str]) -> None:
        for pair, result in zip(pairs, self.tokeniser.batch(pairs), strict=True):
            if isinstance(result, BadRow):
                report.leave_out(label(pair.row), str(result), inherent=isinstance(result, CutAway))
                continue
            keys = keys_of(pair)
            place = len(self.builder)
            self.builder.add(result[0], source=source, cuts=result[1], keys=keys, scores=pair.scores)
            self.without_prompt += not pair.prompt
            self.oddities.observe(pair)
            self.near.observe(pair, keys[1:])
            if self.sets:
                texts = texts_of(pair)
                for evaluation in self.sets:
                    evaluation.observe(texts, place)


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


def keys_of(pair: Pair) -> tuple[int, int, int]:
    """Hashes (64 bits) of the prompt, of prompt and chosen, of prompt and rejected.

    Pairs without a prompt are told apart by their answers: else all of them would have one prompt.
    """
    prompt = _digest(pair.prompt)
    chosen, rejected = prompt.copy(), prompt.copy()
    _update(chosen, pair.chosen)
    _update(rejected, pair.rejected)
    if not pair.prompt:
        _update(prompt, (*pair.chosen, *pair.rejected))
    first, second, third = (int.from_bytes(d.digest(), "little") for d in (prompt, chosen, rejected))
    return first, second, third


def _digest(messages: Sequence[Message]) -> Any:
    digest = hashlib.blake2b(digest_size=8)
    _update(digest, messages)
    return digest


def _update(digest: Any, messages: Sequence[Message]) -> None:
    for message in messages:
        data = message.content.encode("utf-8", "surrogatepass")
        digest.update(f"{message.role}:{len(data)}:".encode() + data)


def _batches(rows: Iterator[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    while batch := list(islice(rows, BATCH)):
        yield batch
