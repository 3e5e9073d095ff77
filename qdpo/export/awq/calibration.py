"""What AWQ watches the model do: the run's own conversations, as they were trained on."""

from __future__ import annotations

import random

from qdpo.errors import DataError
from qdpo.export.source import Run

PAIRS = 128
"""As many sequences as the paper calibrates with; llmcompressor's own examples take 128 to 512."""

TOKENS = 512
"""Longest sequence, as in the paper: memory and time grow with it."""


def calibration_ids(run: Run) -> list[list[int]]:
    """Prompts with their chosen answers, as token ids; training pairs only, drawn with the run's seed.

    Held-out pairs stay unseen: the export is scored on them.

    Raises:
        DataError: the run has no training pairs.
        QdpoError: its configuration or its data cannot be read.
    """
    from transformers import AutoTokenizer

    from qdpo.data.prepare import prepare
    from qdpo.paths import cache_folder
    from qdpo.run import folder as run_folder

    config = run_folder.reopen(run.folder).config
    prepared = prepare(
        config.data, AutoTokenizer.from_pretrained(run.adapter), config.train.seed, cache=cache_folder("data")
    )
    count = len(prepared.train)
    if not count:
        raise DataError("the run has no training pairs to calibrate AWQ with")
    drawn = sorted(random.Random(config.train.seed).sample(range(count), min(PAIRS, count)))
    return [[*pair.prompt, *pair.chosen][:TOKENS] for pair in (prepared.train[index] for index in drawn)]
