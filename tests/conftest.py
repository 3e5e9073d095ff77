"""What all tests share: an environment without network or surprises, and a tiny model on disk."""

from __future__ import annotations

import os
import tempfile

# Before any Hugging Face import: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Models of a few thousand weights: threads that wait for one another on a busy machine make them 50 times slower, and
# the order of a sum would depend on how many there are.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Reference log-probabilities that tests compute are no other run's business.
os.environ["QDPO_CACHE"] = tempfile.mkdtemp(prefix="qdpo-tests-")

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from training.tiny import Tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A tiny Llama with its tokenizer, and preference pairs as JSONL files, all on disk; not to be changed."""
    from training.tiny import make_tiny

    return make_tiny(tmp_path_factory.mktemp("tiny"))
