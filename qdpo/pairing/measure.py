"""What is known of each pair of a file before a part of them is chosen: lengths, scores, doubles, margins."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qdpo.config.schema import DataSection, RunConfig
from qdpo.data.faults import ALL_BAD, FaultyRows
from qdpo.data.files import readers
from qdpo.data.files.kinds import check
from qdpo.data.files.sources import EMBEDDED_SPLITS, find_source
from qdpo.data.ingest import keys_of
from qdpo.data.pieces import BadRow
from qdpo.data.prepare import system_for
from qdpo.data.quality import duplicates
from qdpo.data.report import DataReport
from qdpo.data.rows import Rows
from qdpo.data.schemas.formats import check_columns
from qdpo.data.store import Builder, TokenPairs
from qdpo.errors import DataError
from qdpo.model.source import ASSETS, EMBEDDED
from qdpo.progress import Progress, waiting

if TYPE_CHECKING:
    from qdpo.evaluation.subject import Subject, Wording


@dataclass
class Measured:
    """n pairs of a file, and the rows that are none.

    Attributes:
        source: the file, for people.
        unit: what numbers of rows count, from 1: `line` or `row`.
        total: rows that were read.
        faults: rows that cannot be used, by number, each with its reason.
        rows: (n,) numbers of the others, rising.
        characters: (n, 2) length of chosen and rejected.
        scores: (n, 2) what the file rates chosen and rejected; NaN where it does not.
        twins: rows that are the same as an earlier one, or almost, and the earlier one; empty where not asked for.
        looked_at: pairs that were compared for `twins`.
        base: (n,) mean log-probability per token of chosen minus that of rejected under the base, nats; None where not
            asked for.
        run: (n,) implicit reward margin of a run over its base, without beta: (policy - base) of chosen minus the same
            of rejected, nats; None where not asked for.
    """

    source: str
    unit: str
    total: int
    faults: dict[int, str]
    rows: np.ndarray
    characters: np.ndarray
    scores: np.ndarray
    twins: dict[int, int]
    looked_at: int
    base: np.ndarray | None = None
    run: np.ndarray | None = None


def file_of(name: str) -> Path:
    """The file that a name means; the embedded pairs are one.

    Raises:
        DataError: it is a folder, or a dataset of the hub, of which no part can be written in its own form.
        InputMissingError: there is no such file.
    """
    if name == EMBEDDED:
        return ASSETS / "pairs" / EMBEDDED_SPLITS["train"]
    path = Path(name).expanduser()
    if path.is_dir():
        raise DataError(f"{name} is a folder; a part is chosen of one file", "give one of its files")
    if not readers.is_file_name(name):
        raise DataError(
            f"{name} is no file; a part is chosen of one file",
            f"check the path, or save the hub's dataset first: datasets.load_dataset({name!r}, split='train')"
            ".to_json('pairs.jsonl')",
        )
    check(path)
    return path


def measure(
    config: RunConfig, wanted: Collection[str], adapter: Path | None = None, *, twins: bool = False
) -> Measured:
    """Read and measure the pairs of `config.data.name`, a file.

    Args:
        config: how rows are read and, for margins, the model.
        wanted: margins to measure, `base` and `run`; they need the model.
        adapter: of the run; None measures the base alone.
        twins: look for pairs that are the same as an earlier one, or almost.

    Raises:
        QdpoError: the data has no known form, or the model cannot be had.
    """
    from qdpo.evaluation import subject as subjects

    wording = subjects.wording_of(config, adapter) if wanted else None
    with waiting("reading the pairs"):
        found, ids = _read(config.data, wording, twins)
    if ids is not None:
        with waiting("loading the model"):
            subject = subjects.load(config, adapter, wording)
        _margins(found, ids, subject, wanted)
    return found


def _read(data: DataSection, wording: Wording | None, twins: bool) -> tuple[Measured, TokenPairs | None]:
    """One pass over the rows; ids only where there is a model."""
    near, builder = duplicates.NearDuplicates(), Builder()
    tokenise = _tokeniser(data, wording)
    rows = _opened(data, wording)
    report = _Report(data.name, unit=rows.source.unit)
    numbers: list[int] = []
    characters: list[tuple[int, int]] = []
    scores: list[tuple[float, float]] = []
    seen: dict[tuple[int, int], int] = {}
    same: dict[int, int] = {}
    for batch in rows.batches(report):
        for (row, pair), ids in zip(batch, tokenise([pair for _, pair in batch]), strict=True):
            if isinstance(ids, BadRow):
                rows.leave_out(report, pair.row, row, ids)
                continue
            if ids is not None:
                builder.add(ids[0], cuts=ids[1])
            numbers.append(pair.row)
            characters.append((_length(pair.chosen), _length(pair.rejected)))
            scores.append(pair.scores or (np.nan, np.nan))
            if twins:
                key = keys_of(pair)[1:3]
                near.observe(pair, key)
                if (earlier := seen.setdefault(key, pair.row)) != pair.row:
                    same[pair.row] = earlier
    if not numbers:
        raise FaultyRows([report], ALL_BAD)
    found = Measured(
        data.name,
        report.unit,
        report.rows_read,
        report.faulty,
        np.array(numbers, np.int64),
        np.array(characters, np.int64),
        np.array(scores, np.float64),
        dict(near.found) | same,
        len(near.rows),
    )
    return found, None if wording is None else builder.finish()


class _Report(DataReport):
    """A report that knows the fault of every row, not only of the first ones."""

    def __init__(self, source: str, unit: str) -> None:
        super().__init__(source, unit=unit)
        self.faulty: dict[int, str] = {}

    def leave_out(self, row: int | str, bad: BadRow, field: str, example: Callable[[], str]) -> None:
        """As every report does, and remember the row."""
        super().leave_out(row, bad, field, example)
        self.faulty[int(row)] = str(bad)


def _opened(data: DataSection, wording: Wording | None) -> Rows:
    """The rows, recognised.

    Raises:
        DataError: their form is not known, or which answers make a pair is drawn by the place of a row.
    """
    check_columns(data.columns)
    system = data.system if wording is None else system_for(data, wording.template)
    plain = wording is not None and wording.template.source is None
    rows = Rows(data, find_source(data.name), data.format, None, system=system, seed=0, plain=plain)
    if rows.reader is not None and rows.reader.format.drawn:
        raise DataError(
            f"{data.name}: its rows hold several answers, and which is the rejected one is drawn by their place in the "
            "file; in a part of it other pairs would be drawn than were chosen",
            "make pairs of it first: `qdpo pairs from-ratings`",
        )
    return rows


def _length(answer: Collection[Any]) -> int:
    return sum(len(message.content) for message in answer)


def _tokeniser(data: DataSection, wording: Wording | None) -> Any:
    """Ids of a batch of pairs, as the run would read them; None for each where there is no model."""
    if wording is None:
        return lambda pairs: [None] * len(pairs)
    from qdpo.data.tokenise import Tokeniser

    limits = data.max_length, data.max_prompt_length
    return Tokeniser(wording.tokenizer, wording.template, *limits, data.special_text).batch


def _margins(found: Measured, ids: TokenPairs, subject: Subject, wanted: Collection[str]) -> None:
    from qdpo.evaluation.scoring import score_pairs

    policy = subject.policy if "run" in wanted else None
    budget = subject.config.packing.tokens_without_grad
    with Progress("scoring", len(ids), unit="pairs") as progress:
        scores = score_pairs(subject.engine, ids, budget, subject.base, policy, progress.advance)
    base, after = scores.base.numpy(), scores.policy.numpy()
    if "base" in wanted:
        mean = base / scores.tokens.numpy()
        found.base = mean[:, 0] - mean[:, 1]
    if policy is not None:
        change = after - base
        found.run = change[:, 0] - change[:, 1]
