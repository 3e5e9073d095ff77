"""The first pass: all rows are read and checked before any is tokenised, so that what is wrong is known in seconds."""

from __future__ import annotations

from collections.abc import Sequence

from qdpo.data.ingest import answer_keys, keys_of
from qdpo.data.pairs import Pair, TokenPair
from qdpo.data.pieces import BadRow, Inherent
from qdpo.data.quality.oddities import Oddities
from qdpo.data.report import DataReport
from qdpo.data.rows import Found, Rows
from qdpo.data.store import Builder
from qdpo.data.tokenise import Tokeniser


def check(sources: Sequence[Rows], tokeniser: Tokeniser) -> DataReport:
    """What is wrong with the rows, and what is odd about those that are not; lengths are not known.

    Tokenised are only pairs in doubt: those that spell out a special token, and one of each sequence of roles, which a
    template may refuse. What a tokenizer alone knows (answers that are identical in tokens) is left to the second pass.

    Args:
        sources: the rows of one report.
        tokeniser: makes the ids of pairs in doubt; what it counts is not the run's.

    Raises:
        DataError: a source or the template is damaged.
        ConfigError: a conversation that would be written as plain text.
    """
    report = DataReport(sources[0].source.label, unit=sources[0].source.unit)
    doubts, oddities, compared = _Doubts(tokeniser), Oddities(), Builder()
    for rows in sources:
        for batch in rows.batches(report):
            for pair in doubts.settle(batch, rows, report):
                oddities.observe(pair)
                ids = TokenPair(pair.row, [], [], [])
                compared.add(ids, keys=keys_of(pair), answers=answer_keys(pair), scores=pair.scores)
    records = compared.finish().records
    report.pairs = len(records)
    report.compare(records)
    report.unicode = oddities.as_dict()
    return report


class _Doubts:
    """Sorts out pairs that the template or its special tokens make unusable."""

    def __init__(self, tokeniser: Tokeniser) -> None:
        self.tokeniser = tokeniser
        self.rendered: set[tuple[str, ...]] = set()

    def settle(self, batch: Found, rows: Rows, report: DataReport) -> list[Pair]:
        """The pairs of a batch that can be used; the others are left out in the report."""
        doubtful = {at: pair for at, (_, pair) in enumerate(batch) if self._is_doubtful(pair)}
        bad = {}
        for (at, pair), result in zip(doubtful.items(), self.tokeniser.batch(list(doubtful.values())), strict=True):
            if isinstance(result, BadRow) and not isinstance(result, Inherent):
                bad[at] = result
                rows.leave_out(report, pair.row, batch[at][0], result)
            else:
                self.rendered.add(_roles(pair))
        return [pair for at, (_, pair) in enumerate(batch) if at not in bad]

    def _is_doubtful(self, pair: Pair) -> bool:
        messages = (*pair.prompt, *pair.chosen, *pair.rejected)
        return _roles(pair) not in self.rendered or any(map(self.tokeniser.marks.first, messages))


def _roles(pair: Pair) -> tuple[str, ...]:
    return tuple(message.role for message in pair.prompt)
