"""Where rows come from: the hub, local files and folders, and the embedded pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdpo.data import hub, readers
from qdpo.data.readers import EXTENSIONS, is_file_name
from qdpo.errors import DataError, InputMissingError
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
    """

    label: str
    identity: Callable[[], str]
    numbered: Callable[[], Iterator[tuple[int, Any]]]
    unit: str

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
        config: configuration of a hub dataset.
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
        return _files([ASSETS / "pairs" / EMBEDDED_SPLITS[split]], label)
    if is_file_name(name):
        path = Path(name).expanduser()
        return _files(_files_of(path, split), label) if path.is_dir() else _files([path], name)
    dataset = hub.load(name, split, config, revision)
    return Source(label, lambda: f"hub {name} {split} {dataset._fingerprint}", lambda: enumerate(dataset, 1), "row")


def _files(paths: list[Path], label: str) -> Source:
    for path in paths:
        readers.check(path)

    def numbered() -> Iterator[tuple[int, Any]]:
        before = 0
        for path in paths:
            number = 0
            for number, row in readers.numbered(path):
                yield before + number, row
            before += number

    unit = "line" if all(map(readers.has_lines, paths)) else "row"
    return Source(label, lambda: digest_of([sha256_file(path) for path in paths]), numbered, unit)


def _files_of(folder: Path, split: str) -> list[Path]:
    """The files of one split of a folder, in order.

    Understood are `Dataset.save_to_disk` (one split), `DatasetDict.save_to_disk` (a folder per split), and files whose
    names begin with the split's (`train.jsonl`, `train-00000-of-00002.parquet`).

    Raises:
        InputMissingError: the folder has no such split.
        DataError: it holds no data that qdpo reads.
    """
    if (folder / "dataset_dict.json").is_file():
        names = _read_json(folder / "dataset_dict.json").get("splits", [])
        if split not in names:
            raise InputMissingError(f"{folder} has no split {split!r}", f"its splits are {', '.join(names) or 'none'}")
        folder = folder / split
    if (folder / "state.json").is_file():
        listed = [folder / entry["filename"] for entry in _read_json(folder / "state.json").get("_data_files", [])]
        if not listed:
            raise DataError(f"{folder}: state.json names no data files")
        return listed
    data = sorted(path for path in folder.iterdir() if path.is_file() and set(path.suffixes) & EXTENSIONS)
    if not data:
        raise DataError(f"{folder} is a folder without data files", f"give one file: {', '.join(sorted(EXTENSIONS))}")
    named = [path for path in data if path.name.split(".")[0].split("-")[0] == split]
    if not named:
        present = ", ".join(path.name for path in data[:5])
        raise InputMissingError(
            f"the folder {folder} has no file named after the split {split!r}",
            f"it has {present}: give one of these files, or set data.split",
        )
    return named


def _read_json(path: Path) -> dict[str, list]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} does not look like what `datasets` writes")
    return found
