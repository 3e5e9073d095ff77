"""From ratings to pairs: of each prompt the best answer against the worst, or every better one against every worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qdpo.data.files.sources import find_source
from qdpo.data.pieces import BadRow
from qdpo.data.report import DataReport
from qdpo.data.rows import RECOGNISED_BY
from qdpo.data.schemas.formats import names_of, rename
from qdpo.errors import ConfigError, DataError, UsageError
from qdpo.grammar import counted
from qdpo.pairing.pairs_file import Preferred
from qdpo.pairing.pieces import Prompt, shortened
from qdpo.pairing.ratings import RENAMED, Better, Rating, recognise, standing
from qdpo.pairing.reading import settle, understood

SHOWN = 3
"""Prompts that are named in a message."""


@dataclass
class Ranked:
    """Pairs, and what became none.

    Attributes:
        source: the file's name.
        known_by: how its rows were recognised.
        pairs: the pairs, in the order in which their prompts come first.
        rows: rows that were read.
        prompts: different prompts that have a rating.
        rows_left_out: rows that say nothing about which answer is better, by reason: reason and how many.
        prompts_left_out: prompts that gave no pair, by reason.
        combinations_left_out: with all pairs: combinations of two answers that gave none, by reason.
        averaged: answers that were rated more than once.
    """

    source: str
    known_by: str = ""
    pairs: list[Preferred] = field(default_factory=list)
    rows: int = 0
    prompts: int = 0
    rows_left_out: dict[str, int] = field(default_factory=dict)
    prompts_left_out: dict[str, list[Prompt]] = field(default_factory=dict)
    combinations_left_out: dict[str, int] = field(default_factory=dict)
    averaged: int = 0

    def sentences(self) -> list[str]:
        """What was left out and why, a sentence each."""
        said = [
            f"{count:,} of {counted(self.rows, 'row')} left out: {reason}"
            for reason, count in self.rows_left_out.items()
        ]
        if self.averaged:
            said.append(f"{counted(self.averaged, 'answer was', 'answers were')} rated more than once: the mean counts")
        for reason, prompts in self.prompts_left_out.items():
            named = "; ".join(f'"{shortened(prompt)}"' for prompt in prompts[:SHOWN])
            more = "; ..." if len(prompts) > SHOWN else ""
            said.append(f"{len(prompts):,} of {counted(self.prompts, 'prompt')} left out: {reason} ({named}{more})")
        return said + [
            f"{counted(count, 'combination')} of two answers left out: {reason}"
            for reason, count in self.combinations_left_out.items()
        ]


def rank(
    name: str,
    *,
    all_pairs: bool = False,
    min_gap: float = 0.0,
    columns: dict[str, str] | None = None,
    drop: bool = False,
) -> Ranked:
    """Read ratings and make pairs of them.

    Args:
        name: a local file or folder, or a hub dataset.
        all_pairs: every answer against every one with a lower score, instead of the highest against the lowest.
        min_gap: scores of the two must differ by at least this much; those that are equal make no pair.
        columns: the file's own column for a name that qdpo knows (`ratings.RENAMED`).
        drop: leave out rows that are at fault, instead of an error.

    Raises:
        DataError: rows are at fault, or no pair comes of them; says why.
        ConfigError: `columns` names a column that is not there.
        UsageError: a gap is asked for where there are no scores.
        QdpoError: the file cannot be read.
    """
    source = find_source(name)
    rows = list(source.numbered())
    ranked = Ranked(source.label, rows=len(rows))
    columns = columns or {}
    usable = [row for _, row in rows if isinstance(row, dict)]
    _check_columns(columns, usable, source.label)
    if not usable:
        raise DataError(f"{source.label} has no rows with columns", "a line is a JSON object: prompt, answer and score")
    shape, ranked.known_by = recognise([rename(row, columns) for row in usable[:RECOGNISED_BY]], source.label)
    if shape.name == "votes":
        rows, undone = standing(rows)
        if undone:
            ranked.rows_left_out["votes that were taken back"] = undone
    report = DataReport(source.label, rows_read=len(rows), unit=source.unit)

    def read(row: dict[str, Any]) -> list[Rating | Better]:
        renamed = rename(row, columns)
        if shape.known_by(renamed) is None:
            raise BadRow(f"the row has not the columns of {shape.name}", f"other rows have {ranked.known_by}")
        return shape.read(renamed)

    found = [one for said in understood(rows, report, read) for one in said]
    for reason, left in report.reasons:
        if left.inherent:
            ranked.rows_left_out[reason] = left.count
    settle(report, drop)
    ratings = [one for one in found if isinstance(one, Rating)]
    if min_gap and not ratings and found:
        raise UsageError(f"--min-gap is for scores; {source.label} has {shape.name}", "leave it out")
    decided = [one for one in found if isinstance(one, Better)]
    ranked.pairs += [Preferred(one.prompt, one.chosen, one.rejected) for one in decided]
    ranked.prompts = len({one.prompt for one in found})
    _pair(ratings, ranked, shape.name == "thumbs", all_pairs, min_gap)
    if not ranked.pairs:
        raise DataError(
            f"{source.label}: no pair in {counted(ranked.rows, 'row')}"
            + "".join(f"; {sentence}" for sentence in ranked.sentences()),
            "a pair needs two answers to the same prompt of which one is better",
        )
    return ranked


def _check_columns(columns: dict[str, str], rows: Sequence[dict[str, Any]], source: str) -> None:
    present = {str(column) for row in rows for column in row}
    for ours, theirs in columns.items():
        if ours not in RENAMED:
            raise ConfigError(f"--column {ours}=...: qdpo reads no such column", f"it reads {', '.join(RENAMED)}")
        if theirs not in present:
            raise ConfigError(
                f"--column {ours}={theirs}: {source} has no column `{theirs}`",
                f"its columns are {names_of(sorted(present))}",
            )


def _pair(ratings: Sequence[Rating], ranked: Ranked, thumbs: bool, all_pairs: bool, min_gap: float) -> None:
    """Make pairs of rated answers, prompt by prompt."""
    rated: dict[Prompt, dict[str, list[float]]] = {}
    for rating in ratings:
        rated.setdefault(rating.prompt, {}).setdefault(rating.answer, []).append(rating.score)
    ranked.averaged = sum(len(scores) > 1 for answers in rated.values() for scores in answers.values())
    for prompt, answers in rated.items():
        scored = [(text, sum(scores) / len(scores)) for text, scores in answers.items()]
        best, worst = max(scored, key=lambda item: item[1]), min(scored, key=lambda item: item[1])
        if reason := _why_none(scored, best[1], worst[1], thumbs, min_gap):
            ranked.prompts_left_out.setdefault(reason, []).append(prompt)
        elif not all_pairs:
            ranked.pairs.append(Preferred(prompt, best[0], worst[0], (best[1], worst[1])))
        else:
            _every(prompt, sorted(scored, key=lambda item: -item[1]), ranked, min_gap)


def _why_none(scored: list[tuple[str, float]], best: float, worst: float, thumbs: bool, min_gap: float) -> str:
    """Why answers with these scores give no pair; empty if they do."""
    if len(scored) < 2:
        return "one rated answer only"
    if best == worst:
        return f"only thumbs {'up' if best else 'down'}" if thumbs and best in (0, 1) else "all scores are equal"
    return f"scores differ by less than {min_gap:g}" if best - worst < min_gap else ""


def _every(prompt: Prompt, ordered: list[tuple[str, float]], ranked: Ranked, min_gap: float) -> None:
    for place, (better, high) in enumerate(ordered):
        for worse, low in ordered[place + 1 :]:
            if high == low or high - low < min_gap:
                reason = "equal scores" if high == low else f"scores differ by less than {min_gap:g}"
                ranked.combinations_left_out[reason] = ranked.combinations_left_out.get(reason, 0) + 1
            else:
                ranked.pairs.append(Preferred(prompt, better, worse, (high, low)))
