"""Which pairs are evaluated: those that a run has held out, or those of another file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qdpo import console
from qdpo.config.schema import RunConfig
from qdpo.data.pairs import TokenPair
from qdpo.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from qdpo.data.report import DataReport
    from qdpo.data.store import TokenPairs
    from qdpo.data.template import Template


@dataclass(frozen=True)
class Chosen:
    """Pairs to evaluate.

    Attributes:
        source: where they come from, for people.
        pairs: as ids.
        prompts: how many different prompts they have.
        fingerprint: identifies the pairs by content.
    """

    source: str
    pairs: list[TokenPair]
    prompts: int
    fingerprint: str


def heldout_pairs(config: RunConfig, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> Chosen:
    """The held-out pairs of a run, prepared as the run did.

    Raises:
        DataError: the data cannot be used.
    """
    from qdpo.data.prepare import prepare
    from qdpo.paths import cache_folder

    data = prepare(config.data, tokenizer, config.train.seed, cache=cache_folder("data"))
    return _chosen(data.heldout[:limit], data.heldout_report)


def pairs_of(config: RunConfig, tokenizer: PreTrainedTokenizerBase, template: Template, limit: int | None) -> Chosen:
    """All pairs of `data.name`, whatever schema it has, as they would be read for training.

    Raises:
        DataError: rows cannot be used (unless data.on_bad_row is drop), or nothing is left.
    """
    from qdpo.data.prepare import read_all

    pairs, report = read_all(config.data, tokenizer, template, config.train.seed)
    return _chosen(pairs[:limit], report)


def _chosen(pairs: TokenPairs, report: DataReport) -> Chosen:
    from qdpo.data.prepare import fingerprint

    for line in report.summary():
        console.say(line)
    if not len(pairs):
        raise DataError(f"{report.source}: there is no pair to evaluate")
    prompts = len(set(pairs.records["prompt_key"].tolist()))
    return Chosen(report.source, list(pairs), prompts, fingerprint(pairs))
