"""Preference data as a run reads it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qdpo.api.config import Config, Overrides, settled
from qdpo.api.process import borrowed
from qdpo.data.prepare import Prepared, prepare
from qdpo.data.preview import preview
from qdpo.data.store import TokenPairs
from qdpo.model.load import load_tokenizer

if TYPE_CHECKING:
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Pairs:
    """Preference pairs, checked, split and tokenised as a run would.

    Attributes:
        prepared: the data of the run, with template and reports.
        tokenizer: the base's.
    """

    prepared: Prepared
    tokenizer: PreTrainedTokenizerBase

    @property
    def train(self) -> TokenPairs:
        """Pairs to learn from, as token ids: `pairs.train[0].chosen`."""
        return self.prepared.train

    @property
    def heldout(self) -> TokenPairs:
        """Pairs to evaluate on, as token ids."""
        return self.prepared.heldout

    @property
    def report(self) -> dict[str, Any]:
        """What became of the rows of both parts; docs/data.md describes it."""
        return {
            "train": self.prepared.train_report.as_dict(),
            "heldout": self.prepared.heldout_report.as_dict(),
        }

    def text(self, index: int) -> dict[str, str]:
        """One training pair as text: `prompt`, `chosen`, `rejected`, with the template's marks."""
        pair = self.train[index]
        parts = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        return {name: str(self.tokenizer.decode(ids)) for name, ids in parts.items()}

    def preview(self, index: int) -> list[Text]:
        """One training pair token by token, for a terminal: what is prompt, what is learned, what is special."""
        prepared = self.prepared
        return preview(self.train[index], self.tokenizer, prepared.template, prepared.train_report.unit)

    def __repr__(self) -> str:
        return "\n".join([*self.prepared.train_report.summary(), *self.prepared.heldout_report.summary()])


def load_pairs(
    data: str | os.PathLike[str],
    preset: str | os.PathLike[str] | Config = "quickstart",
    overrides: Overrides = None,
    *,
    model: str | None = None,
    against: Sequence[str] = (),
) -> Pairs:
    """Read preference data as a run would: recognise its schema, check, split and tokenise it.

    >>> import qdpo
    >>> pairs = qdpo.load_pairs("quickstart")
    >>> print(pairs.text(0)["prompt"])  # doctest: +ELLIPSIS
    <s>...

    Args:
        data: hub dataset, local file or folder, or `quickstart`.
        preset: says lengths, template and tokenizer.
        overrides: settings by their dotted key, such as `{"data.max_length": 512}`.
        model: another tokenizer: hub name or local folder.
        against: evaluation sets to compare the training pairs with.

    Raises:
        DataError: rows that cannot be used, each reason with its rows.
        QdpoError: data or tokenizer cannot be had.
    """
    name = os.fspath(data)
    config = settled(preset, overrides, model=model, data=name)
    settings = config.data
    if against:
        settings = settings.model_copy(update={"contamination": [*settings.contamination, *against]})
    with borrowed():
        tokenizer = load_tokenizer(config.model)
        return Pairs(prepare(settings, tokenizer, config.train.seed), tokenizer)
