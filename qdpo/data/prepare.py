"""Everything between the configuration and the token pairs of a run: train and held-out, and the report on both."""

from __future__ import annotations

import array
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qdpo import console
from qdpo.config.schema import DataSection
from qdpo.data import cache as caching
from qdpo.data.check import check
from qdpo.data.faults import FaultyRows
from qdpo.data.files import readers
from qdpo.data.files.kinds import check as check_file
from qdpo.data.files.sources import Source, find_source, has_splits
from qdpo.data.ingest import Ingest
from qdpo.data.pairs import TokenPair
from qdpo.data.quality.contamination import EvaluationSet, load_sets
from qdpo.data.quality.near_prompts import NearPrompts
from qdpo.data.report import DataReport
from qdpo.data.rows import Rows
from qdpo.data.schemas.formats import check_columns
from qdpo.data.split import split_by_prompt, split_keys
from qdpo.data.store import Builder, TokenPairs
from qdpo.data.template import Template, load_template
from qdpo.data.tokenise import Tokeniser
from qdpo.errors import DataError
from qdpo.files import digest_of
from qdpo.model.source import ASSETS, EMBEDDED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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

    train: TokenPairs
    heldout: TokenPairs
    text: list[list[int]]
    template: Template
    train_report: DataReport
    heldout_report: DataReport


@dataclass(frozen=True)
class Part:
    """One dataset of the training data.

    Attributes:
        source: its rows.
        format: data.format for it.
        weight: how often its pairs are used.
    """

    source: Source
    format: str
    weight: float


def prepare(
    config: DataSection, tokenizer: PreTrainedTokenizerBase, seed: int, *, cache: Path | None = None
) -> Prepared:
    """Read, check, split and tokenise the data of a run.

    Args:
        config: the `data` section.
        tokenizer: the base's tokenizer.
        seed: seed of the split, of drawn answers, and of a mixture's shares.
        cache: folder of tokenised data to look into and to keep the result in; None keeps nothing.

    Raises:
        DataError: rows that cannot be used (unless data.on_bad_row is drop), or nothing is left.
    """
    check_columns(config.columns)
    template = load_template(config.template, tokenizer)
    parts = training_parts(config)
    held_source = heldout_source(config)
    text = read_text(config, tokenizer)
    sets = load_sets(config.contamination)
    entry, before = None, {}
    if cache is not None:
        sources = [part.source for part in parts] + ([held_source] if held_source else [])
        before = {source: source.identity() for source in sources}
        settings = config.model_dump_json(exclude={"text"})
        # A file of evaluation items may change under the same name.
        against = [digest_of(found.items) for found in sets]
        digest = caching.tokenizer_digest(tokenizer)
        entry = caching.Entry(
            cache, caching.key_of([settings, str(seed), template.sha256, digest, *before.values(), *against])
        )
        if found := entry.load():
            train, heldout, reports = found
            console.note(f"tokenised data from {entry.path}")
            train_report, heldout_report = (DataReport.from_dict(reports[part]) for part in ("train", "heldout"))
            return Prepared(train, heldout, text, template, train_report, heldout_report)
    train, heldout, train_report, heldout_report = _read(config, tokenizer, template, seed, parts, held_source, sets)
    caching.refuse_changed(before)
    if entry is not None:
        entry.save(train, heldout, {"train": train_report.as_dict(), "heldout": heldout_report.as_dict()})
    return Prepared(train, heldout, text, template, train_report, heldout_report)


def training_parts(config: DataSection) -> list[Part]:
    """The datasets to train on: `data.name`, then the mixture's others."""
    main = find_source(config.name, split=config.split, config=config.config, revision=config.revision)
    parts = [Part(main, config.format, config.mixture.get(config.name, 1.0))]
    for wanted, weight in config.mixture.items():
        if wanted == config.name:
            continue
        name, _, split = wanted.removesuffix("]").partition("[")
        parts.append(Part(find_source(name, split=split or "train"), "auto", weight))
    return parts


def heldout_source(config: DataSection) -> Source | None:
    """The dataset's own held-out split; None where one must be cut from the training pairs."""
    # A local file has no splits: a held-out split of the same file would be the training rows again.
    one_file = config.eval_name is None and not has_splits(config.name)
    if not (config.eval_split or config.eval_name) or one_file:
        return None
    return find_source(
        config.eval_name or config.name,
        split=config.eval_split or config.split,
        config=config.config,
        revision=config.revision if config.eval_name is None else None,
    )


def _read(
    config: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    seed: int,
    parts: list[Part],
    held_source: Source | None,
    sets: list[EvaluationSet],
) -> tuple[TokenPairs, TokenPairs, DataReport, DataReport]:
    """Read all sources, compare them with evaluation sets; returns train, held-out and their reports."""
    tokeniser = Tokeniser(tokenizer, template, config.max_length, config.max_prompt_length, config.special_text)
    open_rows = _opener(config, template, seed)

    def training() -> list[Rows]:
        limits = [config.max_rows] + [None] * (len(parts) - 1)
        return [
            open_rows(part.source, part.format, limit, mixed=number > 0)
            for number, (part, limit) in enumerate(zip(parts, limits, strict=True))
        ]

    def held_out() -> list[Rows]:
        return [open_rows(held_source, config.format, config.max_eval_rows)] if held_source else []

    if config.on_bad_row == "error":
        refuse(config, *(check(rows, replace(tokeniser)) for rows in (training(), held_out()) if rows))
    builder = Builder()
    report = DataReport(parts[0].source.label, unit=parts[0].source.unit)
    prompts = NearPrompts()
    ingest = Ingest(tokeniser, builder, sets, prompts)
    for number, (part, rows) in enumerate(zip(parts, training(), strict=True)):
        ingest.read(rows, number, report)
        report.sources[-1]["weight"] = part.weight
    finish(report, ingest, config)
    count = len(builder)
    if held_source is not None:
        held_report = DataReport(held_source.label, unit=held_source.unit)
        # Evaluation sets are compared with what is trained on, not with what is held out.
        held_ingest = Ingest(tokeniser, builder, prompts=prompts)
        tokeniser.merge = None
        for rows in held_out():
            held_ingest.read(rows, len(parts), held_report)
        held_report.sources.clear()
        finish(held_report, held_ingest, config)
        groups = prompts.groups()
        whole = builder.finish(groups)
        train_order, held_order = np.arange(count), np.arange(count, len(builder))
    else:
        groups = prompts.groups()
        whole = builder.finish(groups)
        train_order, held_order = split_by_prompt(
            split_keys(whole.records), config.eval_fraction, seed, whole.records["group"]
        )
        held_order = held_order[: config.max_eval_rows]
        held_report = DataReport(
            f"{report.source}, {config.eval_fraction:g} held out by prompt",
            report.format,
            report.format_reason,
            len(held_order),
            report.unit,
        )
    train_order = _weighted(train_order, whole.records["source"], [part.weight for part in parts], seed)
    if not len(train_order):
        raise DataError(f"{report.source}: the weights of data.mixture leave no pair")
    train, heldout = whole.select(train_order), whole.select(held_order)
    report.measure(train.records)
    held_report.measure(heldout.records)
    report.prompts["near"] = prompts.as_dict(groups)
    for name, key in (("in_other_split", "loose_key"), ("near_in_other_split", "group")):
        held_report.prompts[name] = int(np.isin(heldout.records[key], train.records[key]).sum())
    if sets:
        numbers = dict(zip(train.order.tolist(), train.records["row"].tolist(), strict=True))
        report.contamination = [found.as_dict(frozenset(numbers), numbers) for found in sets]
    return train, heldout, report, held_report


def read_all(
    config: DataSection, tokenizer: PreTrainedTokenizerBase, template: Template, seed: int
) -> tuple[TokenPairs, DataReport]:
    """All pairs of `data.name`, whatever schema it has, as they would be read for training; and the report.

    Raises:
        DataError: rows cannot be used (unless data.on_bad_row is drop), or nothing is left.
    """
    check_columns(config.columns)
    source = find_source(config.name, split=config.split, config=config.config, revision=config.revision)
    tokeniser = Tokeniser(tokenizer, template, config.max_length, config.max_prompt_length, config.special_text)
    open_rows = _opener(config, template, seed)
    if config.on_bad_row == "error":
        refuse(config, check([open_rows(source, config.format, config.max_rows)], replace(tokeniser)))
    report = DataReport(source.label, unit=source.unit)
    ingest = Ingest(tokeniser, Builder())
    ingest.read(open_rows(source, config.format, config.max_rows), 0, report)
    finish(report, ingest, config)
    pairs = ingest.builder.finish()
    report.measure(pairs.records)
    return pairs, report


def _opener(config: DataSection, template: Template, seed: int) -> Callable[..., Rows]:
    """Opens a source's rows; takes the source, its data.format and the number of rows to read."""
    return partial(Rows, config, system=system_for(config, template), seed=seed, plain=template.source is None)


def system_for(config: DataSection, template: Template) -> str | None:
    """The system message of rows that bring none.

    Raises:
        DataError: the template has no place for the configured one.
    """
    if config.system and not template.takes_system:
        raise DataError(
            f"data.system is set, and the chat template ({template.origin}) has no place for a system message",
            "set data.system=null, or choose another data.template",
        )
    # The handbook inserts an empty system message where the template has a place for one.
    return config.system if template.takes_system else None


def refuse(config: DataSection, *reports: DataReport) -> None:
    """Stop at rows that are at fault and are not to be dropped.

    Raises:
        FaultyRows: there are some; says all of them.
    """
    if config.on_bad_row == "error" and any(report.faults for report in reports):
        raise FaultyRows(reports)


def finish(report: DataReport, ingest: Ingest, config: DataSection) -> None:
    """Complete the report of one split when all of its rows were read.

    Raises:
        DataError: rows are at fault and not to be dropped, or nothing is left.
    """
    refuse(config, report)
    if not report.rows_read:
        raise DataError(f"{report.source} has no rows")
    if sum(left.count for left in report.left_out.values()) == report.rows_read:
        raise FaultyRows([report])
    report.boundary_example = ingest.tokeniser.merge
    report.unicode = ingest.oddities.as_dict()
    report.duplicates = {"near": ingest.near.as_dict()}
    report.separable = ingest.separable.as_dict()
    report.prompts = {"empty": ingest.without_prompt}


def _weighted(order: np.ndarray, sources: np.ndarray, weights: list[float], seed: int) -> np.ndarray:
    """Use each source's pairs as often as its weight says: whole times, then a seeded share."""
    if all(weight == 1 for weight in weights):
        return order
    chosen = []
    for number, weight in enumerate(weights):
        own = order[sources[order] == number]
        chosen += [own] * int(weight)
        share = round((weight - int(weight)) * len(own))
        chosen.append(np.sort(np.random.default_rng([seed, number]).permutation(own)[:share]))
    return np.concatenate(chosen)


def read_text(config: DataSection, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Held-out plain text as ids, cut to max_length."""
    if config.text is None:
        return []
    path = ASSETS / "text_heldout.jsonl" if config.text == EMBEDDED else Path(config.text).expanduser()
    texts = []
    file = check_file(path)
    for number, row in readers.numbered(file):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise DataError(f"{'line' if file.has_lines else 'row'} {number} of {path} has no text in a column `text`")
        texts.append([int(i) for i in tokenizer.encode(row["text"])][: config.max_length])
    return [ids for ids in texts if len(ids) > 1]


def fingerprint(pairs: Iterable[TokenPair]) -> str:
    """Identifies token pairs by content: the same ids in the same order give the same SHA-256."""

    digest = hashlib.sha256()
    for pair in pairs:
        for ids in (pair.prompt, pair.chosen, pair.rejected):
            data = array.array("q", ids).tobytes()
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
