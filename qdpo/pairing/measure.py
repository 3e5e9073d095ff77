"""What is known of each pair of a file before a part of them is chosen: lengths, scores, doubles, margins."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qdpo.config.schema import DataSection, RunConfig
from qdpo.data import duplicates, readers
from qdpo.data.formats import Reading, check_columns, keeps_ties, recognise, rename, to_pair
from qdpo.data.ingest import BATCH, RECOGNISED_BY, keys_of
from qdpo.data.pairs import Pair
from qdpo.data.pieces import BadRow
from qdpo.data.prepare import system_for
from qdpo.data.schemas import MADE_BY_SCORE
from qdpo.data.sources import EMBEDDED_SPLITS, find_source
from qdpo.data.store import Builder, TokenPairs
from qdpo.errors import DataError
from qdpo.model.source import ASSETS, EMBEDDED
from qdpo.progress import Progress, waiting

if TYPE_CHECKING:
    from qdpo.evaluation.subject import Subject


@dataclass
class Measured:
    """n pairs of a file, and the rows that are none.

    Attributes:
        source: the file, for people.
        total: rows that were read.
        faults: rows that cannot be used, by number, each with its reason.
        rows: (n,) numbers of the others, from 0, rising.
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
    total: int = 0
    faults: dict[int, str] = field(default_factory=dict)
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    characters: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    scores: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    twins: dict[int, int] = field(default_factory=dict)
    looked_at: int = 0
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
    readers.check(path)
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

    subject = None
    if wanted:
        with waiting("loading the model"):
            subject = subjects.load(config, adapter)
    with waiting("reading the pairs"):
        found, ids = _read(config.data, subject, twins)
    if subject is not None and ids is not None:
        _margins(found, ids, subject, wanted)
    return found


def _read(data: DataSection, subject: Subject | None, twins: bool) -> tuple[Measured, TokenPairs | None]:
    """One pass over the rows; ids only where there is a model."""
    near, builder = duplicates.NearDuplicates(), Builder()
    tokenise = _tokeniser(subject)
    system = data.system if subject is None else system_for(data, subject.template)
    found = Measured(data.name)
    rows: list[int] = []
    characters: list[tuple[int, int]] = []
    scores: list[tuple[float, float]] = []
    seen: dict[tuple[int, int], int] = {}
    for batch in _batches(data, system, found):
        for pair, ids in zip(batch, tokenise(batch), strict=True):
            if isinstance(ids, BadRow):
                found.faults[pair.row] = str(ids)
                continue
            if ids is not None:
                builder.add(ids[0], cuts=ids[1])
            rows.append(pair.row)
            characters.append((_length(pair.chosen), _length(pair.rejected)))
            scores.append(pair.scores or (np.nan, np.nan))
            if twins:
                key = keys_of(pair)[1:]
                near.observe(pair, key)
                if (earlier := seen.setdefault(key, pair.row)) != pair.row:
                    found.twins[pair.row] = earlier
    found.twins = dict(near.found) | found.twins
    found.looked_at = len(near.rows)
    found.rows = np.array(rows, np.int64)
    found.characters = np.array(characters, np.int64).reshape(-1, 2)
    found.scores = np.array(scores, np.float64).reshape(-1, 2)
    if not rows:
        reasons = list(dict.fromkeys(found.faults.values()))
        raise DataError(
            f"{data.name}: none of {found.total:,} rows can be used: {'; '.join(reasons[:3]) or 'it has none'}",
            f"`qdpo data {data.name}` says more",
        )
    return found, builder.finish() if subject is not None else None


def _batches(data: DataSection, system: str | None, found: Measured) -> Iterator[list[Pair]]:
    """The pairs, some at a time; rows that are none go to `found.faults`."""
    check_columns(data.columns)
    source = find_source(data.name)
    rows = source.rows()
    head = list(islice(rows, RECOGNISED_BY))
    usable = [rename(row, data.columns) for row in head if isinstance(row, dict)]
    if not usable:
        raise DataError(
            f"{data.name}: none of its first {len(head)} rows is an object with columns", f"see `qdpo data {data.name}`"
        )
    form, _ = recognise(usable, data.format, data.name)
    if form.name in MADE_BY_SCORE:
        raise DataError(
            f"{data.name}: its rows hold several answers, and which is the rejected one is drawn by their place in the "
            "file; in a part of it other pairs would be drawn than were chosen",
            "make pairs of it first: one row each with prompt, chosen, rejected, score_chosen and score_rejected",
        )
    reading = Reading(system, keep_ties=keeps_ties(data.ties, form))
    batch: list[Pair] = []
    for place, row in enumerate(chain(head, rows)):
        found.total += 1
        try:
            batch.append(to_pair(rename(_row(row), data.columns), place, form, reading))
        except BadRow as bad:
            found.faults[place] = str(bad)
        if len(batch) == BATCH:
            yield batch
            batch = []
    yield batch


def _row(row: Any) -> dict[str, Any]:
    if isinstance(row, readers.Broken):
        raise BadRow(row.reason)
    if not isinstance(row, dict):
        raise BadRow(f"the row is {type(row).__name__}, expected an object with columns")
    return row


def _length(answer: Collection[Any]) -> int:
    return sum(len(message.content) for message in answer)


def _tokeniser(subject: Subject | None) -> Any:
    """Ids of a batch of pairs, as the run would read them; None for each where there is no model."""
    if subject is None:
        return lambda pairs: [None] * len(pairs)
    from qdpo.data.tokenise import Tokeniser

    data = subject.config.data
    return Tokeniser(subject.tokenizer, subject.template, data.max_length, data.max_prompt_length).batch


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
