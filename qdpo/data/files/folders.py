"""Which files of a folder are one split of a dataset: what `datasets` saved, a clone from the hub, or files by name."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from qdpo.data.files.kinds import EXTENSIONS, is_named_data
from qdpo.errors import DataError, InputMissingError
from qdpo.foreign import SHORT, shortened, visible

DEPTH = 4
"""Folders below the given one that are looked into."""
MOST_ENTRIES = 50_000
"""Files and folders that are looked at."""
NO_ROWS = frozenset({"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json"})
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in names of files and folders that say which split they are, by the name that `datasets` has for it."""
SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}\b")
LARGEST_README = 1 << 20


@dataclass(frozen=True)
class Part:
    """One data file of a folder.

    Attributes:
        path: where it is.
        named: how its name begins, and the names of its folders: each may be the very name of a split.
        split: its split by the words in these; empty where they do not say.
        config: the folders that are no split, as a name; empty at the top.
    """

    path: Path
    named: frozenset[str]
    split: str
    config: str

    @property
    def kin(self) -> str:
        """The same for the numbered files of one split."""
        return re.sub(r"[\W\d_]+", "", self.path.name.split(".")[0])


def files_of(folder: Path, split: str, config: str | None = None) -> tuple[list[Path], str]:
    """The files of one split of a folder, in order, and what is to be said about the choice (mostly nothing).

    Understood are `Dataset.save_to_disk` (one split), `DatasetDict.save_to_disk` (a folder per split), what `configs:`
    in a README.md names, and files whose names or folders say the split (`train.jsonl`, `train/a.jsonl`,
    `data/train-00000-of-00002.parquet`); a folder's only data file is its train split.

    Args:
        folder: the dataset.
        split: wanted.
        config: `data.config`: a configuration in README.md, or a folder in the folder.

    Raises:
        InputMissingError: the folder has no such split or configuration; says which there are.
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
        return listed, ""
    if configs := _configs_of(folder):
        return _by_readme(folder, configs, split, config)
    return _by_names(folder, split, config)


def _by_names(folder: Path, split: str, config: str | None) -> tuple[list[Path], str]:
    parts = _parts_of(folder)
    if not parts:
        raise DataError(f"{folder} is a folder without data files", f"give one file: {', '.join(sorted(EXTENSIONS))}")
    configs = sorted({part.config for part in parts if part.config})
    if config:
        parts = [part for part in parts if part.config == config]
        if not parts:
            raise InputMissingError(
                f"{folder} has no folder for the configuration {config!r}", f"it has {_listed(configs) or 'none'}"
            )
    found = _of_split(parts, split, folder)
    if not found and split == "train" and len(parts) == 1 and not parts[0].split:
        return [parts[0].path], f"the folder's only data file, {_shown(parts[0].path, folder)}"
    if not found:
        raise _no_split(folder, split, parts)
    if at_top := [part for part in found if not part.config]:
        found = at_top
    chosen = sorted({part.config for part in found})
    if len(chosen) > 1:
        raise DataError(
            f"{folder} has {len(chosen)} configurations with the split {split!r}",
            f"set data.config to one of {_listed(chosen)}",
        )
    return [part.path for part in found], f"configuration {chosen[0]}" if chosen[0] and not config else ""


def _of_split(parts: list[Part], split: str, folder: Path) -> list[Part]:
    """The parts with the split's very name, else those with the split among the words of their names.

    Raises:
        InputMissingError: there are several kinds of the latter, such as `train_prefs.jsonl` and `train_sft.jsonl`.
    """
    if exact := [part for part in parts if split in part.named]:
        return exact
    alike = [part for part in parts if part.split in SPLITS.get(split, (split,))]
    if len({part.kin for part in alike}) > 1:
        raise InputMissingError(
            f"the folder {folder} has no file named {split!r} alone, and several with this split in their names",
            f"give one of them: {_listed(_shown(part.path, folder) for part in alike)}",
        )
    return alike


def _no_split(folder: Path, split: str, parts: list[Part]) -> InputMissingError:
    present = _listed(_shown(part.path, folder) for part in parts)
    splits = _listed(sorted({part.split for part in parts if part.split}))
    return InputMissingError(
        f"the folder {folder} has no file named after the split {split!r}",
        f"its splits are {splits}: set data.split to one, or give one of its files: {present}"
        if splits
        else f"it has {present}: give one of these files, or set data.split",
    )


def _parts_of(folder: Path) -> list[Part]:
    """All data files of a folder and of those in it, sorted by name."""
    found, seen = [], 0
    for root, folders, files in os.walk(folder):
        seen += len(folders) + len(files)
        if seen > MOST_ENTRIES:
            raise DataError(f"{folder} has more than {MOST_ENTRIES:,} files and folders", "give the one with the data")
        place = Path(root).relative_to(folder)
        hidden = len(place.parts) + 1 >= DEPTH
        folders[:] = [] if hidden else sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(root, name)
            if is_named_data(path) and not name.startswith(".") and name not in NO_ROWS and path.is_file():
                found.append(_part(path, place))
    return sorted(found, key=lambda part: part.path)


def _part(path: Path, place: Path) -> Part:
    above = [name for name in place.parts if name != "data"]
    in_folders = next((name for name in reversed(above) if _split_in(name) == name), "")
    stem = path.name.split(".")[0]
    shard = SHARD.match(path.name)
    return Part(
        path,
        frozenset([shard[1] if shard else stem.split("-")[0], *above]),
        shard[1] if shard else _split_in(stem) or in_folders,
        "/".join(name for name in above if name != in_folders),
    )


def _split_in(name: str) -> str:
    """The word for a split in a name, empty where it has none: `dev` in `my_dev_pairs`."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((word for word in words if any(word in known for known in SPLITS.values())), "")


def _configs_of(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The configurations that the front matter of a README.md names, the default one first."""
    import yaml

    try:
        with (folder / "README.md").open("rb") as stream:
            text = stream.read(LARGEST_README).decode("utf-8-sig", "replace")
    except OSError:
        return {}
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.S)
    try:
        listed = (yaml.safe_load(front[1]) or {}).get("configs") if front else None
    except (yaml.YAMLError, AttributeError, ValueError, RecursionError):
        return {}
    entries = [entry for entry in listed or [] if isinstance(entry, dict) and "data_files" in entry]
    named = {str(entry.get("config_name", "default")): entry for entry in entries}
    return dict(sorted(named.items(), key=lambda item: not (item[1].get("default") is True or item[0] == "default")))


def _by_readme(
    folder: Path, configs: Mapping[str, Mapping[str, Any]], split: str, config: str | None
) -> tuple[list[Path], str]:
    name, entry = next(iter(configs.items()))
    if config is not None:
        if config not in configs:
            raise InputMissingError(
                f"{folder}/README.md has no configuration {config!r}", f"it has {_listed(configs)} (data.config)"
            )
        name, entry = config, configs[config]
    elif len(configs) > 1 and not (name == "default" or entry.get("default") is True):
        raise DataError(
            f"{folder}/README.md names {len(configs)} configurations", f"set data.config to one of {_listed(configs)}"
        )
    splits = _splits_of(entry["data_files"])
    if split not in splits:
        raise InputMissingError(f"{folder} has no split {split!r}", f"its splits are {_listed(splits)} (data.split)")
    found: list[Path] = []
    for pattern in splits[split]:
        place = PurePosixPath(pattern)
        if place.is_absolute() or ".." in place.parts or "://" in pattern:
            raise DataError(
                f"{folder}/README.md names data outside of the folder: {visible(shortened(pattern, SHORT))}",
                "give the file itself",
            )
        found += sorted(path for path in folder.glob(pattern) if path.is_file() and path not in found)
    if not found:
        patterns = _listed(splits[split])
        raise InputMissingError(
            f"{folder} has none of the files that its README.md names for the split {split!r}: {patterns}",
            "was the whole dataset downloaded?",
        )
    return found, f"configuration {visible(shortened(name, SHORT))}" if len(configs) > 1 and config is None else ""


def _splits_of(data_files: Any) -> dict[str, list[str]]:
    """Patterns by split, of `data_files` in its three forms: a text, a list of them, or a list of {split, path}."""
    entries = data_files if isinstance(data_files, list) else [data_files]
    found: dict[str, list[str]] = {}
    for entry in entries:
        split, paths = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        for path in paths if isinstance(paths, list) else [paths]:
            if isinstance(path, str):
                found.setdefault(str(split or "train"), []).append(path)
    return found


def _shown(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder))


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(visible(shortened(name, SHORT)) for name in names[:5]) + more


def _read_json(path: Path) -> dict[str, list]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} does not look like what `datasets` writes")
    return found
