"""The pairs of a run, as it was trained on them: AWQ is calibrated with some, and exports are scored on others."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
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


TEXT_FILE = ASSETS / "text_heldout.jsonl"
TEXTS = 24
TEXT_TOKENS = 128
"""Plain texts that exports are scored on, where there are as many pairs, and the most tokens of each."""


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
    return Heldout(pairs, prompts, ends, tokenizer, plain_texts(tokenizer, min(len(pairs), TEXTS)))


def plain_texts(tokenizer: Any, count: int) -> list[list[int]]:
    """Plain texts that come with qdpo, evenly spaced among them all, as ids, cut to `TEXT_TOKENS`."""
    texts = [json.loads(line)["text"] for line in TEXT_FILE.read_text("utf-8").splitlines()]
    plain = [text for text in texts if "<|" not in text]  # no conversations: their marks mean nothing to other models
    spaced = plain[:: max(1, len(plain) // max(count, 1))][:count]
    found = ([int(i) for i in tokenizer.encode(text)][:TEXT_TOKENS] for text in spaced)
    return [ids for ids in found if len(ids) > 1]


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
