"""Everything between the configuration and the token pairs of a run: train and held-out, and the report on both."""

from __future__ import annotations

import array
import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdpo.config.schema import DataSection
from qdpo.data.formats import BadRow, Reading, Tie, keeps_ties, recognise, rename, to_pair
from qdpo.data.pairs import Pair, TokenPair
from qdpo.data.readers import Broken
from qdpo.data.report import DataReport
from qdpo.data.sources import has_splits, read_file, read_rows
from qdpo.data.template import Template, load_template
from qdpo.data.tokenise import CutAway, Tokeniser
from qdpo.errors import DataError
from qdpo.files import digest_of
from qdpo.model.source import ASSETS, EMBEDDED, is_local

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RECOGNISED_BY = 20
"""Rows that decide on the format."""
BATCH = 256
"""Pairs that are tokenised at once."""


@dataclass(frozen=True)
class Prepared:
    """The data of a run.

    Attributes:
        train: token pairs to learn from.
        heldout: token pairs to evaluate on.
        text: held-out plain text as ids, BOS first; empty when none is configured.
        template: how conversations became text.
        train_report: what became of the training rows.
        heldout_report: what became of the held-out rows.
    """

    train: list[TokenPair]
    heldout: list[TokenPair]
    text: list[list[int]]
    template: Template
    train_report: DataReport
    heldout_report: DataReport


def prepare(config: DataSection, tokenizer: PreTrainedTokenizerBase, seed: int) -> Prepared:
    """Read, check, split and tokenise the data of a run.

    Args:
        config: the `data` section.
        tokenizer: the base's tokenizer.
        seed: seed of the split, when held-out rows are cut from the training rows.

    Raises:
        DataError: rows that cannot be used (unless data.on_bad_row is drop), or nothing is left.
    """
    template = load_template(config.template, tokenizer)
    train_report = DataReport(_where(config.name, config.split))
    pairs = read_pairs(config, config.name, config.split, config.max_rows, train_report)
    # A local file has no splits: a held-out split of the same file would be the training rows again.
    one_file = config.eval_name is None and not has_splits(config.name)
    if (config.eval_split or config.eval_name) and not one_file:
        name, split = config.eval_name or config.name, config.eval_split or config.split
        heldout_report = DataReport(_where(name, split))
        heldout = read_pairs(config, name, split, config.max_eval_rows, heldout_report)
    else:
        pairs, heldout = split_by_prompt(pairs, config.eval_fraction, seed)
        heldout = heldout[: config.max_eval_rows]
        heldout_report = DataReport(
            f"{train_report.source}, {config.eval_fraction:g} held out by prompt",
            train_report.format,
            train_report.format_reason,
            len(heldout),
        )
    train = _tokenised(config, pairs, tokenizer, template, train_report)
    held = _tokenised(config, heldout, tokenizer, template, heldout_report)
    return Prepared(train, held, read_text(config, tokenizer), template, train_report, heldout_report)


def _where(name: str, split: str) -> str:
    return name if is_local(name) and name != EMBEDDED else f"{name} [{split}]"


def read_pairs(config: DataSection, name: str, split: str, limit: int | None, report: DataReport) -> list[Pair]:
    """The usable rows of one split, in their order; the others are counted in the report.

    Raises:
        DataError: a row is bad and data.on_bad_row is error, or no row is left.
    """
    rows: Iterable[Any] = read_rows(name, split=split, config=config.config, revision=config.revision)
    rows = islice(rows, limit)
    head = list(islice(rows, RECOGNISED_BY))
    usable = [rename(row, config.columns) for row in head if isinstance(row, dict)]
    pairs: list[Pair] = []
    if usable:
        format, report.format_reason = recognise(usable, config.format, report.source)
        report.format = format.name
        reading = Reading(config.system, keep_ties=keeps_ties(config.ties, format))
    for number, row in enumerate(chain(head, rows)):
        report.rows_read += 1
        try:
            if isinstance(row, Broken):
                raise BadRow(row.reason)
            if not isinstance(row, dict):
                raise BadRow(f"the row is {type(row).__name__}, expected an object with columns")
            pairs.append(to_pair(rename(row, config.columns), number, format, reading))
        except BadRow as reason:
            report.leave_out(number, str(reason), inherent=isinstance(reason, Tie))
    if report.faults and config.on_bad_row == "error":
        raise bad_rows(report)
    if not pairs:
        raise DataError(f"{report.source}: no usable pair in {report.rows_read:,} rows")
    return pairs


def bad_rows(report: DataReport) -> DataError:
    """The error for rows that cannot be used: how many, why, the first few."""
    lines = [
        f"{left.count:,} of {report.rows_read:,} rows: {reason} "
        f"(first: rows {', '.join(map(str, left.first_rows))} of {report.source})"
        for reason, left in report.left_out.items()
        if not left.inherent
    ]
    return DataError(
        "; ".join(lines),
        "fix the rows, or set data.on_bad_row=drop to leave them out (they are counted in the report and the card)",
    )


def split_by_prompt(pairs: list[Pair], fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Cut a held-out share so that no prompt is on both sides; seeded.

    Raises:
        DataError: there are too few different prompts to have both sides.
    """
    prompts = sorted({_prompt_key(pair) for pair in pairs})
    random.Random(seed).shuffle(prompts)
    count = max(1, round(fraction * len(prompts)))
    if count >= len(prompts):
        raise DataError(
            f"{len(pairs):,} pairs have {len(prompts)} different prompts: too few to hold some out",
            "give a held-out set with data.eval_name or data.eval_split",
        )
    held = set(prompts[:count])
    return [p for p in pairs if _prompt_key(p) not in held], [p for p in pairs if _prompt_key(p) in held]


def _prompt_key(pair: Pair) -> str:
    # Pairs without a prompt are told apart by their answers, else all of them would be one prompt.
    messages = pair.prompt or (*pair.chosen, *pair.rejected)
    return digest_of([part for message in messages for part in (message.role, message.content)])


def _tokenised(
    config: DataSection,
    pairs: list[Pair],
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    report: DataReport,
) -> list[TokenPair]:
    tokenise = Tokeniser(tokenizer, template, config.max_length, config.max_prompt_length)
    tokens = []
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        for pair, result in zip(batch, tokenise.batch(batch), strict=True):
            if isinstance(result, BadRow):
                # What cutting does to a pair is inherent in the limits: such rows are left out and counted, always.
                report.leave_out(pair.row, str(result), inherent=isinstance(result, CutAway))
            else:
                tokens.append(result)
    if report.faults and config.on_bad_row == "error":
        raise bad_rows(report)
    if not tokens:
        raise bad_rows(report) if report.faults else DataError(f"{report.source}: no pair is left")
    report.cut = {kind: tokenise.cuts[kind] for kind in ("prompt", "chosen", "rejected", "boundary")}
    report.measure(tokens)
    return tokens


def read_text(config: DataSection, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Held-out plain text as ids, cut to max_length."""
    if config.text is None:
        return []
    path = ASSETS / "text_heldout.jsonl" if config.text == EMBEDDED else Path(config.text).expanduser()
    texts = []
    for number, row in enumerate(read_file(path)):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise DataError(f"row {number} of {path} has no text in a column `text`")
        texts.append([int(i) for i in tokenizer.encode(row["text"])][: config.max_length])
    return [ids for ids in texts if len(ids) > 1]


def fingerprint(pairs: list[TokenPair]) -> str:
    """Identifies token pairs by content: the same ids in the same order give the same SHA-256."""

    def packed(ids: list[int]) -> bytes:
        return array.array("q", ids).tobytes()

    return digest_of([part for p in pairs for part in (packed(p.prompt), packed(p.chosen), packed(p.rejected))])
