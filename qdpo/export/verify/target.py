"""What an artefact inside an export can do: be read back, tokenise, and be scored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from qdpo.export.gguf.vocabulary import read_template
from qdpo.export.merged import MergedModel
from qdpo.export.verify.checks import Check
from qdpo.export.verify.scorers import Encode, Scorer, TorchScorer
from qdpo.files import read_json


class Target(Protocol):
    """One artefact.

    Attributes:
        name: for the table.
        kind: its precision: a GGUF type, a dtype, or awq.
    """

    @property
    def name(self) -> str: ...

    kind: str

    def read_back(self, model: MergedModel) -> list[Check]:
        """Compare what is stored with the merged model."""

    def encoder(self) -> tuple[Encode | None, str]:
        """The artefact's own tokenizer (rendered text to ids), or None; and what it is, or why there is none."""

    def not_run(self) -> list[Check]:
        """What cannot be run on this machine and is done in another way instead, with the reason."""

    def scorer(self, model: MergedModel, context: int) -> contextlib.AbstractContextManager[Scorer]:
        """The artefact in the engine that users run it with, or the closest to it that is installed."""


@contextlib.contextmanager
def torch_scorer(model: Any, engine: str) -> Iterator[Scorer]:
    """A scorer that is freed at the end."""
    if torch.cuda.is_available():
        model.to("cuda")
    scorer = TorchScorer(model)
    scorer.engine = engine
    yield scorer
    scorer.model = None


def template_in(folder: Path) -> str | None:
    """The chat template of a tokenizer folder."""
    settings = folder / "tokenizer_config.json"
    return read_template(folder, read_json(settings) if settings.is_file() else {})
