"""What the tests of faults share: one server that has paid for the imports, one tiny world, runs left alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from faults.runs import World


@pytest.fixture(scope="session")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A tiny model and data, and a server that starts `qdpo` commands."""
    from faults.runs import world

    with world(tmp_path_factory.mktemp("faults")) as made:
        yield made
