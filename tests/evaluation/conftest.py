"""A finished run on a tiny model, shared by the tests of this room; not to be changed."""

from __future__ import annotations

import pytest
from training.tiny import Tiny, TinyRun, train_tiny


@pytest.fixture(scope="session")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """20 steps on the tiny model, with its samples."""
    return train_tiny(tiny, tmp_path_factory.mktemp("evaluated") / "run")
