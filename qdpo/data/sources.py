"""Reading rows from the hub, from local files (JSONL, JSON, Parquet, CSV) and from the embedded pairs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qdpo.errors import DataError, InputMissingError, UnavailableError
from qdpo.model.source import ASSETS, EMBEDDED, is_local

EMBEDDED_SPLITS = {"train": "train.jsonl", "heldout": "heldout.jsonl"}


def read_rows(name: str, *, split: str, config: str | None = None, revision: str | None = None) -> Iterator[Any]:
    """The rows of a dataset, in order.

    Args:
        name: hub name, local file, or `quickstart`.
        split: split of a hub dataset or of the embedded pairs; a local file has no splits.
        config: configuration of a hub dataset.
        revision: revision of a hub dataset.

    Raises:
        InputMissingError: no such file or split.
        DataError: the file is broken; names the line where there is one.
        UnavailableError: the hub cannot be reached or does not have it.
    """
    if name == EMBEDDED:
        if split not in EMBEDDED_SPLITS:
            raise InputMissingError(f"the embedded pairs have no split {split!r}", "choose train or heldout")
        return read_file(ASSETS / "pairs" / EMBEDDED_SPLITS[split])
    if is_local(name):
        return read_file(Path(name).expanduser())
    return _read_hub(name, split, config, revision)


def read_file(path: Path) -> Iterator[Any]:
    """The rows of a local file, by its extension."""
    if not path.exists():
        raise InputMissingError(f"there is no file {path}")
    readers: dict[str, Callable[[Path], Iterator[Any]]] = {
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
        ".json": _read_json,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None or not path.is_file():
        what = "is a folder" if path.is_dir() else f"has the unknown extension {path.suffix!r}"
        raise DataError(f"{path} {what}", f"give one file: {', '.join(readers)}")
    return reader(path)


def _read_jsonl(path: Path) -> Iterator[Any]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                # utf-8-sig: a byte order mark at the start of a file is not part of its text
                yield json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except ValueError as error:
                raise DataError(f"{path}:{number}: not JSON: {error}", "each line must be one JSON object") from error


def _read_json(path: Path) -> Iterator[Any]:
    try:
        rows = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(rows, list):
        raise DataError(f"{path} holds {type(rows).__name__}, expected a list of rows")
    yield from rows


def _read_csv(path: Path) -> Iterator[Any]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        try:
            yield from csv.DictReader(stream)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not CSV in UTF-8: {error}") from error


def _read_parquet(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error


def _read_hub(name: str, split: str, config: str | None, revision: str | None) -> Iterator[Any]:
    import datasets
    from huggingface_hub.errors import HFValidationError

    try:
        dataset = datasets.load_dataset(name, config, split=split, revision=revision)
    except (datasets.exceptions.DatasetNotFoundError, HFValidationError) as error:
        raise UnavailableError(
            f"the hub has no dataset {name}, or it is private or gated: {error}",
            "check the name; log in with `hf auth login`; or give a local file with --data PATH",
        ) from error
    except (ConnectionError, FileNotFoundError) as error:
        raise UnavailableError(
            f"the hub cannot be reached and {name} is not in the local cache",
            "go online once to download it, or give a local file with --data PATH",
        ) from error
    except ValueError as error:
        raise DataError(
            f"the hub dataset {name} cannot be read: {error}", "check data.config and data.split"
        ) from error
    return iter(dataset)
