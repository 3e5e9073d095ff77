"""A commit of a hub model without network: found in the cache, or explained."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from qdpo.errors import UnavailableError
from qdpo.model.source import find

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_commit_that_is_not_cached_is_explained(cache: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot be reached") as caught:
        find("owner/name", COMMIT)
    assert caught.value.hint is not None
    assert "--model PATH" in caught.value.hint


def test_a_cached_commit_is_found_without_asking_the_hub(cache: Path) -> None:
    snapshot = cache / "models--owner--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    source = find("owner/name", COMMIT)
    assert (source.folder, source.revision) == (snapshot, COMMIT)
