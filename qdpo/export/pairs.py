"""The pairs of a run, as it was trained on them: AWQ is calibrated with some, and exports are scored on others."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from qdpo.data.pairs import TokenPair
from qdpo.data.prepare import Prepared, prepare
from qdpo.errors import DataError
from qdpo.export.source import TrainedRun
from qdpo.model.source import ASSETS
from qdpo.paths import cache_folder
from qdpo.run import folder as run_folder

CALIBRATION_PAIRS = 128
"""As many sequences as AWQ's paper calibrates with; llmcompressor's own examples take 128 to 512."""

CALIBRATION_TOKENS = 512
"""Longest sequence, as in the paper: memory and time grow with it."""


CALIBRATION_TEXTS, HELDOUT_TEXTS = ASSETS / "plain_text.jsonl", ASSETS / "plain_text_heldout.jsonl"
"""Plain texts of several domains and languages: those that exports are fitted to, and those that they are scored on."""

TEXTS = 24
TEXT_TOKENS = 96
"""Pieces of plain text that exports are scored on, where there are as many pairs, and the tokens of each."""


@dataclass(frozen=True)
class Heldout:
    """Held-out pairs of a run.

    Attributes:
        pairs: token pairs, as the training evaluates them.
        prompts: the texts of the prompts, and their ids.
        ends: ids that end an answer.
        tokenizer: the run's.
        texts: plain texts that are not the run's, as ids.
    """

    pairs: list[TokenPair]
    prompts: list[tuple[str, list[int]]]
    ends: frozenset[int]
    tokenizer: Any
    texts: list[list[int]] = field(default_factory=list)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence: a prompt with its longer completion, or a text."""
        pairs = (len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in self.pairs)
        return max([*pairs, *map(len, self.texts)])


def read_heldout(run: TrainedRun, count: int) -> Heldout:
    """The first `count` held-out pairs of a run, and plain texts.

    Raises:
        QdpoError: the run's configuration or its data cannot be read.
    """
    prepared, tokenizer, _ = _prepare(run)
    pairs = list(prepared.heldout[:count])
    ends = prepared.template.end_of_turn or frozenset({int(tokenizer.eos_token_id)})
    prompts = [(str(tokenizer.decode(pair.prompt)), pair.prompt) for pair in pairs]
    return Heldout(pairs, prompts, ends, tokenizer, plain_pieces(tokenizer, min(len(pairs), TEXTS)))


def plain_texts(path: Path) -> list[str]:
    """The texts of one of the files that come with qdpo."""
    return [str(json.loads(line)["text"]) for line in path.read_text("utf-8").splitlines()]


def plain_pieces(tokenizer: Any, count: int) -> list[list[int]]:
    """Pieces of the texts that exports are scored on, evenly spaced among them all, as ids."""
    pieces = []
    for text in plain_texts(HELDOUT_TEXTS):
        ids = [int(i) for i in tokenizer.encode(text)]
        pieces += [ids[begin : begin + TEXT_TOKENS] for begin in range(0, len(ids), TEXT_TOKENS)]
    whole = [piece for piece in pieces if len(piece) > TEXT_TOKENS // 2]
    return whole[:: max(1, len(whole) // max(count, 1))][:count]


def calibration_ids(run: TrainedRun) -> list[list[int]]:
    """Prompts with their chosen answers, as token ids; training pairs only, drawn with the run's seed.

    Held-out pairs stay unseen: the export is scored on them.

    Raises:
        DataError: the run has no training pairs.
        QdpoError: its configuration or its data cannot be read.
    """
    prepared, _, seed = _prepare(run)
    count = len(prepared.train)
    if not count:
        raise DataError("the run has no training pairs to calibrate AWQ with")
    drawn = sorted(random.Random(seed).sample(range(count), min(CALIBRATION_PAIRS, count)))
    return [[*pair.prompt, *pair.chosen][:CALIBRATION_TOKENS] for pair in (prepared.train[index] for index in drawn)]


def _prepare(run: TrainedRun) -> tuple[Prepared, Any, int]:
    """The run's data, its tokenizer and its seed."""
    config = run_folder.reopen(run.folder).config
    tokenizer = AutoTokenizer.from_pretrained(run.adapter)
    prepared = prepare(config.data, tokenizer, config.train.seed, cache=cache_folder("data"))
    return prepared, tokenizer, config.train.seed
