"""Where a model's files are found, and what is said when they are not."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest

from qdpo.errors import InputMissingError, UnavailableError
from qdpo.model.source import ASSETS, Source, find, is_local

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, without network."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


def put_in_cache(cache: Path, name: str, commit: str) -> Path:
    """A downloaded snapshot, as the hub's client lays it out."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return snapshot


def test_a_local_folder_has_no_revision(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert find(str(tmp_path), "main") == Source(str(tmp_path), tmp_path, None)


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert find("~/model").folder == tmp_path / "model"


def test_the_embedded_model_is_in_the_package() -> None:
    assert find("quickstart").folder == ASSETS / "base"
    assert (find("quickstart").folder / "config.json").is_file()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="there is no model folder") as caught:
        find(str(tmp_path / "nowhere"))
    assert caught.value.hint is not None


def test_a_file_is_no_model_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("")
    with pytest.raises(InputMissingError, match=r"there is no model folder .*model\.gguf"):
        find(str(tmp_path / "model.gguf"))


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match=r"it has no config\.json"):
        find(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "local"), [("./model", True), ("/model", True), ("~/m", True), ("quickstart", True), ("org/model", False)]
)
def test_what_counts_as_local(name: str, local: bool) -> None:
    assert is_local(name) is local


def test_a_hub_name_that_is_not_cached_needs_the_network(cache: Path) -> None:
    with pytest.raises(UnavailableError, match="org/model is not in the local cache") as caught:
        find("org/model")
    assert caught.value.hint is not None
    assert "--model PATH" in caught.value.hint


def test_the_revision_of_a_snapshot_is_its_commit(cache: Path) -> None:
    snapshot = put_in_cache(cache, "org/model", COMMIT)
    for revision in (None, "main"):
        found = find("org/model", revision)
        assert (found.name, found.revision) == ("org/model", COMMIT)
        assert found.folder == snapshot


def test_another_revision_than_the_cached_one_is_not_taken(cache: Path) -> None:
    put_in_cache(cache, "org/model", COMMIT)
    with pytest.raises(UnavailableError):
        find("org/model", "v2")


def test_neither_a_folder_nor_a_hub_name(cache: Path) -> None:
    with pytest.raises(InputMissingError, match="neither a local folder nor a hub name"):
        find("a/b/c d")
