"""Folders that hold a dataset: one that `datasets` saved, or files named after their splits."""

from __future__ import annotations

import json
from pathlib import Path

from qdpo.data.readers import EXTENSIONS
from qdpo.errors import DataError, InputMissingError


def files_of(folder: Path, split: str) -> list[Path]:
    """The files of one split, in order.

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
