"""What one's own model and data are like, as far as the settings of a run depend on it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qdpo.config.schema import DataSection, RunConfig
from qdpo.data.files.sources import find_source
from qdpo.data.pairs import Pair
from qdpo.data.prepare import Prepared, heldout_source, prepare
from qdpo.data.report import DataReport
from qdpo.data.rows import Rows, has_roles
from qdpo.data.schemas.formats import check_columns
from qdpo.data.split import split_keys
from qdpo.errors import DataError, InputMissingError
from qdpo.libraries import quiet_libraries
from qdpo.model.load import load_tokenizer, refuse_quantized
from qdpo.model.source import find, is_local
from qdpo.planner.find import find_base

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PEEKED = 1000
"""Rows whose texts are looked at."""
COMPARED = 200
"""Pairs whose answers are compared token by token."""
COMPARED_TOKENS = 512
LONGEST = 32768
"""Tokens of a pair that is still measured."""
HELD_OUT = ("validation", "valid", "eval", "heldout", "test")
"""Names of a folder's held-out split."""


@dataclass(frozen=True)
class Look:
    """A model and data, looked at.

    Attributes:
        model: hub name or folder.
        family: transformers' `model_type`.
        weights: how many the model has, in millions; None where only its configuration is known.
        context: tokens that it was made for; None where it does not say.
        template: what `data.template` should be.
        template_reason: why.
        data: hub name, file or folder.
        shape: how its rows were recognised.
        rows: rows that were read.
        keys: (n,) hash of each training pair's prompt.
        lengths: (n, 2) tokens of each training pair's prompt and of its longer answer.
        eval_split: the data's own held-out split; None where it has none.
        own_heldout: whether the held-out pairs are others than these, by that split or by data.eval_name.
        peeked: rows whose texts were looked at.
        system: how many of them bring a system message.
        thinking: how many have thinking tags in the chosen, and in the rejected answer.
        alike: the median share of tokens that chosen and rejected have in common, 0 to 1.
        groups: (n,) what the prompts of training pairs that are almost the same have in common; None where none are.
    """

    model: str
    family: str
    weights: float | None
    context: int | None
    template: str
    template_reason: str
    data: str
    shape: str
    rows: int
    keys: np.ndarray
    lengths: np.ndarray
    eval_split: str | None
    own_heldout: bool
    peeked: int
    system: int
    thinking: tuple[int, int]
    alike: float
    groups: np.ndarray | None = None

    @property
    def pairs(self) -> int:
        """Training pairs, those that will be held out included where the data has no split for it."""
        return len(self.lengths)


def look(config: RunConfig, template: str | None) -> Look:
    """Look at a model's configuration and tokenizer, and at the data.

    What lies on the hub is downloaded: the data, and of the model its configuration and tokenizer.

    Args:
        config: names both, and says how the data is read.
        template: `data.template` where it is given; None chooses.

    Raises:
        QdpoError: one of them cannot be had or used, as a run would say it.
    """
    quiet_libraries()
    if is_local(config.model.name):
        refuse_quantized(find(config.model.name))
    base = find_base(config.model.name, config.model.revision)
    text_config = base.config.get("text_config", base.config)
    context = text_config.get("max_position_embeddings")
    tokenizer = load_tokenizer(config.model)
    section = config.data
    eval_split = section.eval_split or _own_split(section)
    peeked = list(_peek(section))
    template_reason = "given"
    if template is None:
        template, template_reason = _template(tokenizer, any(has_roles(row, pair.prompt, None) for row, pair in peeked))
    limit = min(context or LONGEST, LONGEST)
    measured = section.model_copy(
        update={
            **{"template": template, "max_length": limit, "max_prompt_length": limit - limit // 4},
            **{"eval_split": eval_split, "contamination": [], "text": None},
        }
    )
    own_heldout = heldout_source(measured) is not None
    prepared = prepare(measured, tokenizer, config.train.seed)
    records = _records(prepared, own_heldout)
    weights = base.counted or (base.stored or 0) / 2
    return Look(
        model=config.model.name,
        family=str(base.config.get("model_type", "unknown")),
        weights=weights / 1e6 if weights else None,
        context=context if isinstance(context, int) else None,
        template=template,
        template_reason=template_reason,
        data=section.name,
        shape=f"{prepared.train_report.format} ({prepared.train_report.format_reason})",
        rows=prepared.train_report.rows_read,
        keys=split_keys(records),
        groups=records["group"],
        lengths=np.stack([records["prompt"], np.maximum(records["chosen"], records["rejected"])], axis=1),
        eval_split=eval_split,
        own_heldout=own_heldout,
        peeked=len(peeked),
        system=sum(any(m.role == "system" and m.content for m in pair.prompt) for _, pair in peeked),
        thinking=(_thinking(pair.chosen for _, pair in peeked), _thinking(pair.rejected for _, pair in peeked)),
        alike=_alike(prepared),
    )


def _records(prepared: Prepared, has_own: bool) -> np.ndarray:
    """The records of all pairs that can be trained on, those that would be cut off and held out included."""
    if has_own:
        return prepared.train.records
    return np.concatenate([prepared.train.records, prepared.heldout.records])


def _own_split(section: DataSection) -> str | None:
    """The held-out split of a local folder; None where there is none, or the data is no folder."""
    if not is_local(section.name) or section.eval_name:
        return None
    for split in HELD_OUT:
        try:
            source = find_source(section.name, split=split, config=section.config)
        except (InputMissingError, DataError):
            continue
        # a single file has no splits, whatever is asked for
        return split if source.label != section.name else None
    return None


def _peek(section: DataSection) -> Iterator[tuple[dict[str, Any], Pair]]:
    """The first rows that can be read, and the pairs that they become; the others are found when all are read."""
    check_columns(section.columns)
    source = find_source(section.name, split=section.split, config=section.config, revision=section.revision)
    rows = Rows(section, source, section.format, PEEKED, system=None, seed=0, plain=False)
    for batch in rows.batches(DataReport(source.label)):
        yield from batch


def _template(tokenizer: PreTrainedTokenizerBase, roles: bool) -> tuple[str, str]:
    own = tokenizer.chat_template
    if isinstance(own, str) or (isinstance(own, dict) and "default" in own):
        return "auto", "the tokenizer's own"
    if roles:
        return "zephyr", "the tokenizer has none; this one needs no token beyond the end of sequence"
    return "none", "plain text: the tokenizer has no template, and the pairs have no roles"


def _thinking(answers: Iterator[tuple[Any, ...]]) -> int:
    return sum(any("<think>" in message.content for message in answer) for answer in answers)


def _alike(prepared: Prepared) -> float:
    """The median share of tokens that the answers of a pair have in common, in order."""
    pairs = prepared.train[:: max(len(prepared.train) // COMPARED, 1)]
    shares = [
        difflib.SequenceMatcher(
            None, pair.chosen[:COMPARED_TOKENS], pair.rejected[:COMPARED_TOKENS], autojunk=False
        ).ratio()
        for pair in pairs
    ]
    return float(np.median(shares))
