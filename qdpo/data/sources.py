"""Where rows come from: the hub, local files and folders, and the embedded pairs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdpo.data import folders, readers
from qdpo.errors import InputMissingError
from qdpo.files import digest_of, sha256_file
from qdpo.model.source import ASSETS, EMBEDDED, is_local

EMBEDDED_SPLITS = {"train": "train.jsonl", "heldout": "heldout.jsonl"}


@dataclass(frozen=True)
class Source:
    """Rows that can be read, from wherever they are.

    Attributes:
        label: name and split, for messages and the report.
        identity: computes what identifies the content: changes whenever a row does.
        rows: opens the rows; each is whatever the file holds, or `readers.Broken` where one record is damaged.
    """

    label: str
    identity: Callable[[], str]
    rows: Callable[[], Iterator[Any]]


def is_file_name(name: str) -> bool:
    """Whether a dataset name means something on this machine, also when it is not there."""
    return is_local(name) or os.path.lexists(name) or bool(set(Path(name).suffixes) & readers.EXTENSIONS)


def has_splits(name: str) -> bool:
    """Whether a dataset can bring its own held-out split: a single local file cannot."""
    return name == EMBEDDED or not is_file_name(name) or Path(name).expanduser().is_dir()


def find_source(name: str, *, split: str = "train", config: str | None = None, revision: str | None = None) -> Source:
    """Find a dataset without reading its rows.

    Args:
        name: hub name, local file or folder, or `quickstart`.
        split: split of a hub dataset, of a folder or of the embedded pairs; a local file has none.
        config: configuration of a hub dataset.
        revision: revision of a hub dataset.

    Raises:
        InputMissingError: no such file or split.
        DataError: the file is of no known kind.
        UnavailableError: the hub cannot be reached or does not have it.
    """
    if name == EMBEDDED:
        if split not in EMBEDDED_SPLITS:
            raise InputMissingError(f"the embedded pairs have no split {split!r}", "choose train or heldout")
        return _files([ASSETS / "pairs" / EMBEDDED_SPLITS[split]], f"{name} [{split}]")
    if is_file_name(name):
        path = Path(name).expanduser()
        if path.is_dir():
            return _files(folders.files_of(path, split), f"{name} [{split}]")
        return _files([path], name)
    from qdpo.data.hub import load

    dataset = load(name, split, config, revision)
    return Source(f"{name} [{split}]", lambda: f"hub {name} {split} {dataset._fingerprint}", lambda: iter(dataset))


def _files(paths: list[Path], label: str) -> Source:
    for path in paths:
        readers.check(path)

    def rows() -> Iterator[Any]:
        for path in paths:
            yield from readers.read(path)

    return Source(label, lambda: digest_of([sha256_file(path) for path in paths]), rows)


def read_rows(name: str, *, split: str = "train", config: str | None = None, revision: str | None = None) -> Any:
    """The rows of a dataset, in order; see `find_source`."""
    return find_source(name, split=split, config=config, revision=revision).rows()


def read_file(path: Path) -> Iterator[Any]:
    """The rows of a local file.

    Raises:
        InputMissingError: it is not there or cannot be read.
        DataError: it is of no known kind, or damaged.
    """
    readers.check(path)
    return readers.read(path)
