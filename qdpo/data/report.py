"""What was read, what was left out and why, what was cut, how long things are, and what is odd about it all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from qdpo.data.counts import Counted
from qdpo.data.pieces import BadRow, Inherent
from qdpo.data.quality.measures import (
    conflicts,
    exact_duplicates,
    first_rows,
    histogram,
    length_bias,
    most_frequent,
)
from qdpo.data.quality.oddities import MENDED_BY
from qdpo.data.quality.separable import FEWEST, is_alarming, sentences
from qdpo.data.schemas.formats import names_of
from qdpo.data.store import CUTS, SPECIAL
from qdpo.grammar import agreed, counted

CUT_OFTEN = 0.1
"""Share of answers without an end from which it is remarked on."""
ONE_SIDED = 2
"""How much more often than on the other side an answer is on one, to be remarked on: a `yes` may be right or wrong."""
MOST_REASONS = 50
"""Reasons that are told apart: a template may refuse in words that are different for every row."""
PARTS = ("prompt", "chosen", "rejected")


@dataclass
class LeftOut(Counted):
    """Rows left out for one reason.

    Attributes:
        inherent: the rows are not at fault: the limits or a tie leave them out.
        field: the column that is at fault, where it is one, by the dataset's own name.
        fix: what to do about them.
        example: what the first one looks like; visible, without access tokens, and cut.
    """

    inherent: bool = False
    field: str = ""
    fix: str = ""
    example: str = ""


@dataclass
class DataReport:
    """The report on one split.

    Attributes:
        source: dataset name and split.
        format: how rows were read, and why.
        rows_read: rows in the source.
        unit: what the numbers of rows count, from 1: `line` of a file that has lines, else `row`.
        pairs: pairs that are used.
        left_out: by reason.
        cut: completions, prompts and system messages that were cut to length, by kind.
        cut_rows: the first rows of each.
        cleaned: rows that `data.clean` has changed, by mend.
        special_text: pairs whose text spells out special tokens and was encoded as text (`data.special_text: split`).
        boundary_example: how the first merge across the boundary of prompt and answer looks.
        tokens: lengths in tokens by part: min, median, p95, max.
        histogram: lengths in tokens by part: the edges of bins that double, and how many pairs are in each.
        length_bias: share of pairs whose chosen has more characters before anything is cut, and how well length alone
            tells chosen from rejected (AUC).
        prompts: how many different ones, how many pairs have none, how many pairs have one of the other split's, or one
            that is almost the same; how many are almost the same as another (`qdpo.data.quality.near_prompts`).
        duplicates: exact ones by row, near ones by MinHash.
        conflicts: pairs whose chosen answer is another pair's rejected answer to the same prompt.
        constant: the chosen and the rejected answer that most pairs have, where it is more than a tenth of them: how
            many, the first rows, and how many have it on the other side.
        separable: how well the answers alone tell chosen from rejected, and by what (`qdpo.data.quality.separable`).
        scores: pairs with scores, ties among them, and pairs whose chosen has the lower score.
        unicode: what is odd in texts; scripts of the answers.
        unread: columns that hold something and are not read, and in how many rows; a key of messages as `column: key`.
        sources: what each dataset of a mixture gave.
        contamination: what of the evaluation sets occurs in the pairs.
    """

    source: str
    format: str = ""
    format_reason: str = ""
    rows_read: int = 0
    unit: str = "row"
    pairs: int = 0
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    cut_rows: dict[str, list[int]] = field(default_factory=dict)
    cleaned: dict[str, Counted] = field(default_factory=dict)
    special_text: dict[str, Any] = field(default_factory=dict)
    boundary_example: str | None = None
    tokens: dict[str, dict[str, int]] = field(default_factory=dict)
    histogram: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    length_bias: dict[str, float] = field(default_factory=dict)
    prompts: dict[str, Any] = field(default_factory=dict)
    duplicates: dict[str, Any] = field(default_factory=dict)
    conflicts: dict[str, Any] = field(default_factory=dict)
    constant: dict[str, Any] = field(default_factory=dict)
    separable: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    unicode: dict[str, Any] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)
    contamination: list[dict[str, Any]] = field(default_factory=list)

    def leave_out(self, row: int | str, bad: BadRow, field: str, example: Callable[[], str]) -> None:
        """Count a row that did not become a pair.

        Args:
            row: its number, or `source:number`.
            bad: why.
            field: the column at fault, by the dataset's own name.
            example: makes what the row looks like; asked of the first row with this reason.
        """
        reason = str(bad)
        if reason not in self.left_out:
            if len(self.left_out) >= MOST_REASONS:
                reason = "other reasons"
            inherent = isinstance(bad, Inherent)
            self.left_out.setdefault(reason, LeftOut(0, [], inherent, field, bad.fix, example()))
        self.left_out[reason].add(row)

    def count_unread(self, counts: Mapping[str, int]) -> None:
        """Add what a source has beside what is read."""
        for column, count in counts.items():
            self.unread[column] = self.unread.get(column, 0) + count

    def named(self, rows: Sequence[int | str], count: int) -> str:
        """Rows in words: `lines 4, 6 and 12 more`."""
        more = f" and {count - len(rows):,} more" if count > len(rows) else ""
        return f"{self.unit}{'s' * (count > 1)} {', '.join(map(str, rows))}{more}"

    @property
    def reasons(self) -> list[tuple[str, LeftOut]]:
        """Why rows were left out, the most frequent reason first."""
        return sorted(self.left_out.items(), key=lambda item: -item[1].count)

    @property
    def faults(self) -> int:
        """Rows that are left out because something is wrong with them."""
        return sum(left.count for left in self.left_out.values() if not left.inherent)

    def measure(self, records: np.ndarray) -> None:
        """Fill in what the records of the used pairs tell (`qdpo.data.store.RECORD`)."""
        self.pairs = len(records)
        cut = {kind: np.nonzero(records["cut"] & bit)[0] for kind, bit in CUTS.items()}
        self.cut = {kind: len(places) for kind, places in cut.items()}
        self.cut_rows = {kind: first_rows(records, places) for kind, places in cut.items() if len(places)}
        special = np.nonzero(records["cut"] & SPECIAL)[0]
        self.special_text = {"count": len(special), "first_rows": first_rows(records, special)} if len(special) else {}
        if not len(records):
            return
        for part in PARTS:
            lengths = np.sort(records[part])
            self.tokens[part] = {
                "min": int(lengths[0]),
                "median": int(lengths[len(lengths) // 2]),
                "p95": int(lengths[int(0.95 * (len(lengths) - 1))]),
                "max": int(lengths[-1]),
            }
            self.histogram[part] = histogram(lengths)
        self.length_bias = length_bias(records["chosen_characters"], records["rejected_characters"])
        self.compare(records)

    def compare(self, records: np.ndarray) -> None:
        """Fill in what the keys and scores of pairs tell: duplicates, conflicts, ties."""
        keys = records["prompt_key"]
        self.prompts |= {"different": len(np.unique(keys)), "empty": self.prompts.get("empty", 0)}
        self.duplicates = {"exact": exact_duplicates(records), **self.duplicates}
        self.conflicts = conflicts(records)
        self.constant = {side: most_frequent(records, side) for side in ("chosen", "rejected")}
        chosen, rejected = records["chosen_score"], records["rejected_score"]
        scored = ~np.isnan(chosen)
        if scored.any():
            lower = np.nonzero(chosen < rejected)[0]
            self.scores = {
                "scored": int(scored.sum()),
                "ties": int(np.count_nonzero(chosen == rejected)),
                "chosen_is_lower": {"count": len(lower), "first_rows": first_rows(records, lower)},
            }

    def as_dict(self) -> dict[str, Any]:
        """For data_report.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataReport:
        """The report that `as_dict` described."""
        known = {field.name for field in fields(LeftOut)}
        left_out = {
            reason: LeftOut(**{name: value for name, value in entry.items() if name in known})
            for reason, entry in values["left_out"].items()
        }
        cleaned = {mend: Counted(**entry) for mend, entry in values.get("cleaned", {}).items()}
        return cls(**{**values, "left_out": left_out, "cleaned": cleaned})

    def summary(self, *, remarks: bool = True) -> list[str]:
        """A few lines for the terminal, the remarks among them or not."""
        lines = [
            f"{self.source}: {counted(self.pairs, 'pair')} of {counted(self.rows_read, 'row')}, "
            f"{self.format} ({self.format_reason})"
        ]
        lines += [
            f"  with {entry['source']}: {entry['pairs']:,} of {counted(entry['rows_read'], 'row')}, "
            f"weight {entry['weight']:g}, {entry['format']} ({entry['format_reason']})"
            for entry in self.sources[1:]
        ]
        lines += [
            f"  left out {left.count:,}: {reason} ({self.named(left.first_rows, left.count)})"
            for reason, left in self.reasons
        ]
        if self.unread:
            lines.append(f"  not read: {self.unread_columns()}")
        cuts = [f"{count:,} {kind}" for kind, count in self.cut.items() if count and kind != "boundary"]
        if cuts:
            lines.append(f"  cut to length: {', '.join(cuts)}")
        if self.tokens:
            lengths = [f"{part} {t['median']} (max {t['max']})" for part, t in self.tokens.items()]
            lines.append(f"  median tokens: {', '.join(lengths)}")
        return lines + ([f"  {remark}" for remark in self.remarks()] if remarks else [])

    def unread_columns(self) -> str:
        """The columns that are not read, in words; those that only some rows have with the number of these rows."""
        read = self.rows_read - sum(left.count for left in self.left_out.values())
        return names_of(column if count >= read else f"{column} ({count:,})" for column, count in self.unread.items())

    def remarks(self) -> list[str]:
        """What a person should know before training on this, one sentence each."""
        remarks = []
        if special := self.special_text.get("count"):
            what = counted(special, "pair spells out", "pairs spell out")
            remarks.append(
                f"{what} special tokens or marks of the chat template, which were encoded as text"
                f"{self._where(self.special_text)}"
            )
        if (bias := self.length_bias) and abs(bias["auc"] - 0.5) >= 0.1:
            remarks.append(
                f"length alone tells chosen from rejected with an AUC of {bias['auc']:.2f}; chosen is longer in "
                f"{bias['chosen_longer']:.0%} of the pairs"
            )
        remarks += sentences(self.separable, self.named)
        without_end = {side: self.cut.get(side, 0) for side in ("chosen", "rejected")}
        if self.pairs >= FEWEST and max(without_end.values()) > CUT_OFTEN * self.pairs:
            remarks.append(
                f"of {self.pairs:,} pairs {without_end['chosen']:,} chosen and {without_end['rejected']:,} rejected "
                "answers are cut and have no end: raise data.max_length"
            )
        if system := self.cut.get("system message"):
            where = self.named(self.cut_rows["system message"], system)
            remarks.append(
                f"of {self.pairs:,} pairs {system:,} have a system message that is cut, or cut away ({where}): raise "
                "data.max_prompt_length"
            )
        for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
            if (same := self.constant.get(side)) and same["count"] >= ONE_SIDED * same[other]:
                remarks.append(
                    f"of {self.pairs:,} pairs {same['count']:,} have one and the same {side} answer"
                    f"{self._where(same)}; it is the {other} one of {same[other]:,}"
                )
        if (exact := self.duplicates.get("exact", {})).get("count"):
            what = counted(exact["count"], "pair is an exact duplicate", "pairs are exact duplicates")
            remarks.append(f"{what} of an earlier one{self._where(exact)}")
        near = self.duplicates.get("near", {})
        if near.get("count"):
            verb = agreed(near["count"], "is", "are")
            remarks.append(
                f"{near['count']:,} of the first {near['looked_at']:,} pairs {verb} almost the same as another"
            )
        if count := self.conflicts.get("count"):
            what = counted(count, "pair prefers", "pairs prefer")
            remarks.append(
                f"{what} an answer that another pair rejects for the same prompt{self._where(self.conflicts)}"
            )
        if ties := self.scores.get("ties"):
            remarks.append(f"{counted(ties, 'pair has', 'pairs have')} equal scores")
        if (lower := self.scores.get("chosen_is_lower", {})).get("count"):
            what = counted(lower["count"], "pair has", "pairs have")
            remarks.append(f"{what} a chosen answer with the lower score{self._where(lower)}")
        if both := self.prompts.get("in_other_split"):
            remarks.append(
                f"{both:,} of these pairs {agreed(both, 'has', 'have')} a prompt that the training pairs have too, "
                "up to case and white space"
            )
        if (near := self.prompts.get("near_in_other_split", 0)) > (both or 0):
            remarks.append(
                f"{near:,} of these pairs have a prompt that the training pairs have too, or almost the same one"
            )
        if (alike := self.prompts.get("near", {})) and alike["largest"] > alike["looked_at"] / 2:
            remarks.append(
                f"{alike['largest']:,} of {alike['looked_at']:,} different prompts are one group of prompts that are "
                "almost the same: do they fill in one form?"
            )
        for mend, rows in self.cleaned.items():
            remarks.append(f"data.clean=[{mend}] changed {self.named(rows.first_rows, rows.count)}")
        for name, entry in self.unicode.get("unicode", {}).items():
            mend = f"; data.clean=[{MENDED_BY[name]}] mends them" if name in MENDED_BY else ""
            remarks.append(f"{counted(entry['count'], 'pair')}: {name}{self._where(entry)}{mend}")
        return remarks + [contamination_sentence(entry) for entry in self.contamination]

    def warnings(self) -> list[str]:
        """Those of the remarks that cast doubt on everything that is learned and measured."""
        return sentences(self.separable, self.named) if is_alarming(self.separable) else []

    def _where(self, entry: dict[str, Any]) -> str:
        return f" ({self.named(entry['first_rows'], entry['count'])})"


def contamination_sentence(entry: dict[str, Any]) -> str:
    """What of an evaluation set the pairs touch, in plain words."""
    touched, total = entry["touched"], entry["items"]

    def said(key: str) -> str:
        return f"{touched[key]['count']:,} ({touched[key]['share']:.1%})"

    if not any(found["count"] for found in touched.values()):
        return (
            f"of the {counted(total, 'item')} of {entry['name']} none occurs in the training pairs, neither whole nor "
            "by 13 or 8 words in a row"
        )
    return (
        f"of the {counted(total, 'item')} of {entry['name']}, the training pairs contain {said('whole')} whole, "
        f"{said('words_13')} by 13 words in a row and {said('words_8')} by 8 words in a row"
    )
