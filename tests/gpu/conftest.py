"""What the tests on a GPU share: the device, a base of Mistral-7B's shape on disk, and the file of results."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gpu.results import Results, card_name

ROOT = Path(__file__).resolve().parents[2]
# The benchmarks are no part of the installed package; behind everything else, so that an installed qdpo stays first.
sys.path.append(str(ROOT))

RESULTS = pytest.StashKey[Results]()


def pytest_configure(config: pytest.Config) -> None:
    """Collect the results of the whole session."""
    config.stash[RESULTS] = Results()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Note how each test here ended, and how long it took with its fixtures."""
    report = yield
    if Path(__file__).parent in item.path.parents:
        item.config.stash[RESULTS].note(item.name, report.when, report.outcome, report.duration)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the results down, if anything ran on a GPU."""
    results = session.config.stash[RESULTS]
    if torch.cuda.is_available() and results.values:
        wanted = os.environ.get("QDPO_GPU_RESULTS")
        path = Path(wanted) if wanted else ROOT / "benchmarks" / "results" / f"gpu-{card_name()}.json"
        results.write(path)


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config) -> Results:
    """Where a test puts its numbers, before it judges them."""
    return pytestconfig.stash[RESULTS]


@pytest.fixture
def device() -> Iterator[torch.device]:
    """The GPU, with nothing of an earlier test left on it."""
    from gpu.memory import free_up

    free_up(torch.device("cuda"))
    yield torch.device("cuda", torch.cuda.current_device())
    free_up(torch.device("cuda"))


@pytest.fixture(scope="session")
def mistral_7b(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a base of Mistral-7B's shape: random weights in bfloat16, in shards, and a tokenizer.

    Many runs load it, and a card's minutes are few: its 14.5 GB are hashed once.
    """
    from gpu.bases import require_space, sizes_of, write_base

    from qdpo.model import weights
    from qdpo.planner.shapes import MISTRAL_7B

    folder = tmp_path_factory.mktemp("mistral-7b-random")
    # the shards, and one export of the same size with its GGUF beside it
    require_space(folder, 2.5 * 2 * sizes_of(MISTRAL_7B).parameters)
    write_base(folder, MISTRAL_7B, torch.device("cuda"), torch.bfloat16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "weights_sha256", functools.cache(weights.weights_sha256))
        yield folder
