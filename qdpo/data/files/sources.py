"""Where rows come from: the hub, local files and folders, and the embedded pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdpo.data.files import hub, pipes, readers
from qdpo.data.files.folders import files_of
from qdpo.data.files.kinds import DataFile, check
from qdpo.data.files.readers import is_file_name
from qdpo.errors import InputMissingError
from qdpo.files import digest_of, sha256_file
from qdpo.model.source import ASSETS, EMBEDDED

EMBEDDED_SPLITS = {"train": "train.jsonl", "heldout": "heldout.jsonl"}


@dataclass(frozen=True)
class Source:
    """Rows that can be read, from wherever they are.

    Attributes:
        label: name and split, for messages and the report.
        identity: computes what identifies the content: changes whenever a row does.
        numbered: opens the rows, each with its number from 1; it is whatever the file holds, or `readers.Broken` where
            one record is damaged. Several files are counted through.
        unit: what the numbers count: `line` or `row`.
        read_as: what is to be said about how it is read, such as the key under which its rows are; mostly nothing.
    """

    label: str
    identity: Callable[[], str]
    numbered: Callable[[], Iterator[tuple[int, Any]]]
    unit: str
    read_as: str = ""

    def rows(self) -> Iterator[Any]:
        """The rows alone."""
        return (row for _, row in self.numbered())


def has_splits(name: str) -> bool:
    """Whether a dataset can bring its own held-out split: a single local file cannot."""
    return name == EMBEDDED or not is_file_name(name) or Path(name).expanduser().is_dir()


def find_source(name: str, *, split: str = "train", config: str | None = None, revision: str | None = None) -> Source:
    """Find a dataset without reading its rows.

    Args:
        name: hub name, local file or folder, or `quickstart`.
        split: split of a hub dataset, of a folder or of the embedded pairs; a local file has none.
        config: configuration of a hub dataset or of a folder.
        revision: revision of a hub dataset.

    Raises:
        InputMissingError: no such file or split.
        DataError: the file is of no known kind.
        UnavailableError: the hub cannot be reached or does not have it.
    """
    label = f"{name} [{split}]"
    if name == EMBEDDED:
        if split not in EMBEDDED_SPLITS:
            raise InputMissingError(f"the embedded pairs have no split {split!r}", "choose train or heldout")
        return _files([check(ASSETS / "pairs" / EMBEDDED_SPLITS[split])], label)
    if is_file_name(name):
        return _local(Path(name).expanduser(), name, split, config)
    dataset = hub.load(name, split, config, revision)
    return Source(label, lambda: f"hub {name} {split} {dataset._fingerprint}", lambda: enumerate(dataset, 1), "row")


def _local(path: Path, name: str, split: str, config: str | None) -> Source:
    """A file, a folder, or what comes through a pipe."""
    if path.is_dir():
        paths, chosen = files_of(path, split, config)
        return _files([check(file) for file in paths], f"{name} [{split}]", chosen)
    if pipes.is_pipe(path):
        return _files([check(pipes.spooled(path), name)], name)
    return _files([check(path)], name)


def _files(files: list[DataFile], label: str, chosen: str = "") -> Source:
    def numbered() -> Iterator[tuple[int, Any]]:
        before = 0
        for file in files:
            number = 0
            for number, row in readers.numbered(file):
                yield before + number, row
            before += number

    unit = "line" if all(file.has_lines for file in files) else "row"
    told = dict.fromkeys([chosen, *(file.read_as for file in files)])
    return Source(
        label,
        lambda: digest_of([sha256_file(file.path) for file in files]),
        numbered,
        unit,
        ", ".join(filter(None, told)),
    )
