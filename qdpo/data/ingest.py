"""From the rows of a dataset to ids, and what is counted on the way. Nothing of a row stays in memory."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import Any

from qdpo.data.pairs import Message, Pair
from qdpo.data.pieces import BadRow
from qdpo.data.quality.contamination import EvaluationSet, texts_of
from qdpo.data.quality.duplicates import NearDuplicates
from qdpo.data.quality.near_prompts import NearPrompts
from qdpo.data.quality.oddities import Oddities
from qdpo.data.quality.separable import Separable
from qdpo.data.report import DataReport
from qdpo.data.rows import Found, Rows
from qdpo.data.store import Builder
from qdpo.data.tokenise import Tokeniser


class Ingest:
    """Reads sources into one `Builder` and one report.

    Args:
        tokeniser: makes ids.
        builder: takes the pairs.
        sets: evaluation sets to compare with.
        prompts: finds prompts that are almost the same; None where nobody asks.
    """

    def __init__(
        self,
        tokeniser: Tokeniser,
        builder: Builder,
        sets: Sequence[EvaluationSet] = (),
        prompts: NearPrompts | None = None,
    ) -> None:
        self.tokeniser, self.builder, self.sets, self.prompts = tokeniser, builder, sets, prompts
        self.oddities, self.near, self.separable = Oddities(), NearDuplicates(), Separable()
        self.without_prompt = 0

    def read(self, rows: Rows, number: int, report: DataReport) -> None:
        """Read one source; what is left out goes to the report.

        Args:
            rows: the source.
            number: of the source, for the records.
            report: is filled in.

        Raises:
            DataError: the source is damaged.
            ConfigError: a conversation that would be written as plain text.
        """
        before = report.rows_read, len(self.builder)
        for batch in rows.batches(report):
            self._take(batch, number, report, rows)
        report.sources.append(
            {
                "source": rows.source.label,
                "format": rows.reader.format.name if rows.reader else "",
                "format_reason": rows.reader.reason if rows.reader else "",
                "rows_read": report.rows_read - before[0],
                "pairs": len(self.builder) - before[1],
            }
        )

    def _take(self, batch: Found, source: int, report: DataReport, rows: Rows) -> None:
        results = self.tokeniser.batch([pair for _, pair in batch])
        for (row, pair), result in zip(batch, results, strict=True):
            if isinstance(result, BadRow):
                rows.leave_out(report, pair.row, row, result)
                continue
            keys = keys_of(pair)
            place = len(self.builder)
            self.builder.add(
                result[0],
                source=source,
                cuts=result[1],
                keys=keys,
                answers=answer_keys(pair),
                scores=pair.scores,
                characters=(_characters(pair.chosen), _characters(pair.rejected)),
            )
            self.without_prompt += not pair.prompt
            self.oddities.observe(pair)
            self.near.observe(pair, keys[1:3])
            self.separable.observe(pair, rows.label(pair.row), keys[3])
            if self.prompts:
                self.prompts.observe(pair, keys[3])
            if self.sets:
                texts = texts_of(pair)
                for evaluation in self.sets:
                    evaluation.observe(texts, place)


def _characters(messages: Sequence[Message]) -> int:
    return sum(len(message.content) for message in messages)


def keys_of(pair: Pair) -> tuple[int, int, int, int]:
    """Hashes (64 bits) of the prompt, of prompt and chosen, of prompt and rejected, and of the prompt up to case, white
    space and form of characters (NFKC).

    Pairs without a prompt are told apart by their answers: else all of them would have one prompt.
    """
    prompt = _digest(pair.prompt)
    chosen, rejected = prompt.copy(), prompt.copy()
    _update(chosen, pair.chosen)
    _update(rejected, pair.rejected)
    if not pair.prompt:
        _update(prompt, (*pair.chosen, *pair.rejected))
    loose = _digest([Message(m.role, _loose(m.content)) for m in pair.prompt]) if pair.prompt else prompt
    first, second, third, last = (int.from_bytes(d.digest(), "little") for d in (prompt, chosen, rejected, loose))
    return first, second, third, last


def answer_keys(pair: Pair) -> tuple[int, int]:
    """Hashes (64 bits) of the chosen and of the rejected answer alone."""
    chosen, rejected = (int.from_bytes(_digest(said).digest(), "little") for said in (pair.chosen, pair.rejected))
    return chosen, rejected


def _loose(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _digest(messages: Sequence[Message]) -> Any:
    digest = hashlib.blake2b(digest_size=8)
    _update(digest, messages)
    return digest


def _update(digest: Any, messages: Sequence[Message]) -> None:
    for message in messages:
        data = message.content.encode("utf-8", "surrogatepass")
        digest.update(f"{message.role}:{len(data)}:".encode() + data)
