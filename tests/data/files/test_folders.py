"""Folders: clones of the hub, splits and configurations by name, and what is said where one is not there."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qdpo.data.files.sources import Source, find_source
from qdpo.data.quality.contamination import load_sets
from qdpo.errors import DataError, InputMissingError, QdpoError


def made(folder: Path, files: Mapping[str, int | str]) -> str:
    """Files with one row each, `{"n": number}`; a text is written as it is."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        elif path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist([{"n": content}]), path)
        elif path.suffix == ".csv":
            path.write_text(f"n\n{content}\n")
        else:
            path.write_text(json.dumps({"n": content}) + "\n")
    return str(folder)


def numbers(source: Source) -> list[int]:
    return [int(row["n"]) for row in source.rows()]


def readme(*configs: Any) -> str:
    import yaml

    return f"---\n{yaml.safe_dump({'license': 'mit', 'configs': list(configs)})}---\n# Pairs\n"


SHARDED = {
    "data/train-00001-of-00002.parquet": 2,
    "data/train-00000-of-00002.parquet": 1,
    "data/test-00000-of-00001.parquet": 3,
    "README.md": "# Pairs\n",
    ".git/train.json": 9,
    "dataset_infos.json": "{}",
}
PREFERENCES = {"data/train_prefs-00000-of-00001.parquet": 1, "data/train_sft-00000-of-00001.parquet": 2}
TWO = {"helpful/train.jsonl": 1, "harmless/train.jsonl": 2, "harmless/test.jsonl": 3}
NAMED = {
    "README.md": readme(
        {"config_name": "old", "data_files": "old/*.jsonl"},
        {"config_name": "new", "data_files": [{"split": "train", "path": ["n/a.jsonl", "n/b.jsonl"]}], "default": True},
        {"config_name": "gone", "data_files": [{"split": "train", "path": "gone/*.jsonl"}]},
    ),
    "old/a.jsonl": 1,
    "n/a.jsonl": 2,
    "n/b.jsonl": 3,
}

# name: (files, split, config, rows)
READ: dict[str, tuple[Mapping[str, int | str], str, str | None, list[int]]] = {
    "clone of the hub": (SHARDED, "train", None, [1, 2]),
    "its test split": (SHARDED, "test", None, [3]),
    "splits with their own names": (PREFERENCES, "train_prefs", None, [1]),
    "folders of splits": ({"train/b.jsonl": 2, "train/a.jsonl": 1, "test/a.jsonl": 3}, "train", None, [1, 2]),
    "folders of splits in data": ({"data/train/x.csv": 1, "data/test/y.csv": 2}, "test", None, [2]),
    "a folder with a name of its own": ({"train_prefs/x.jsonl": 1, "test_prefs/x.jsonl": 2}, "test_prefs", None, [2]),
    "the split within a name": ({"my_train_pairs.jsonl": 1, "my_dev_pairs.jsonl": 2}, "train", None, [1]),
    "another word for the split": ({"train.jsonl": 1, "valid.jsonl": 2}, "validation", None, [2]),
    "the very name before another word": ({"dev.jsonl": 1, "validation.jsonl": 2}, "validation", None, [2]),
    "a word that is no name of `datasets`": ({"my_eval_pairs.jsonl": 1, "test.jsonl": 2}, "eval", None, [1]),
    "names in capitals": ({"Train.JSONL": 1, "TEST.CSV": 2}, "test", None, [2]),
    "the only file": ({"pairs_v2.jsonl": 1, "notes.md": "text"}, "train", None, [1]),
    "a configuration": (TWO, "train", "harmless", [2]),
    "the only configuration with the split": (TWO, "test", None, [3]),
    "the top before configurations": ({**TWO, "train.jsonl": 4}, "train", None, [4]),
    "README, its default": (NAMED, "train", None, [2, 3]),
    "README, another": (NAMED, "train", "old", [1]),
    "README, one text": (
        {"README.md": readme({"data_files": "x.jsonl"}), "x.jsonl": 1, "y.jsonl": 2},
        "train",
        None,
        [1],
    ),
    "README without configurations": ({"README.md": "---\nlicense: mit\n---\n", "train.jsonl": 1}, "train", None, [1]),
    "README that is no YAML": ({"README.md": "---\n: [\n---\n", "train.jsonl": 1}, "train", None, [1]),
    "in the hub's cache": ({"snapshots/0a1b/data/train-00000-of-00001.parquet": 1}, "train", None, [1]),
}


@pytest.mark.parametrize("name", READ)
def test_the_files_of_a_split_are_found(name: str, tmp_path: Path):
    files, split, config, rows = READ[name]
    assert numbers(find_source(made(tmp_path, files), split=split, config=config)) == rows


OUTSIDE = {"README.md": readme({"data_files": "../*.jsonl"}), "a.jsonl": 1}
# name: (files, split, config, error, what it says)
MISSING: dict[str, tuple[Mapping[str, int | str], str, str | None, type[QdpoError], list[str]]] = {
    "no such split": (SHARDED, "dev", None, InputMissingError, ["'dev'", "its splits are test, train", "data.split"]),
    "train of own names": (PREFERENCES, "train", None, InputMissingError, ["train_prefs, train_sft"]),
    "two kinds of train": (
        {"train_sft.jsonl": 1, "train_prefs.jsonl": 2},
        "train",
        None,
        InputMissingError,
        ["'train'", "several with this split in their names", "train_prefs.jsonl, train_sft.jsonl"],
    ),
    "eval is not test": ({"train.jsonl": 1, "test.jsonl": 2}, "eval", None, InputMissingError, ["test, train"]),
    "files without splits": ({"a.jsonl": 1, "b.jsonl": 2}, "train", None, InputMissingError, ["a.jsonl, b.jsonl"]),
    "the only file is no test": ({"pairs.jsonl": 1}, "test", None, InputMissingError, ["'test'", "pairs.jsonl"]),
    "several configurations": (TWO, "train", None, DataError, ["2 configurations", "data.config", "harmless, helpful"]),
    "no such configuration": (TWO, "train", "nice", InputMissingError, ["'nice'", "it has harmless, helpful"]),
    "README, no such split": (NAMED, "test", None, InputMissingError, ["'test'", "its splits are train"]),
    "README, no such configuration": (NAMED, "train", "x", InputMissingError, ["'x'", "new, old, gone"]),
    "README, files that are not there": (NAMED, "train", "gone", InputMissingError, ["gone/*.jsonl", "downloaded"]),
    "README, several": (
        {"README.md": readme({"config_name": "a", "data_files": "a"}, {"config_name": "b", "data_files": "b"})},
        "train",
        None,
        DataError,
        ["2 configurations", "a, b"],
    ),
    "README, outside": (OUTSIDE, "train", None, DataError, ["outside of the folder", "../*.jsonl"]),
    "nothing but text": (
        {"README.md": "text", "sub/notes.md": "text"},
        "train",
        None,
        DataError,
        ["without data files"],
    ),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_not_there_is_told_with_what_is(name: str, tmp_path: Path):
    files, split, config, error, parts = MISSING[name]
    with pytest.raises(error) as caught:
        find_source(made(tmp_path, files), split=split, config=config)
    for part in parts:
        assert part in re.sub(r"\s+", " ", str(caught.value))
    assert len(str(caught.value)) < 800


def test_the_split_of_an_evaluation_set_is_looked_for(tmp_path: Path):
    folder = made(tmp_path, {"train.jsonl": 1, "test.jsonl": '{"text": "what is held out"}\n'})
    [found] = load_sets([folder])
    assert found.items == ["what is held out"]
    with pytest.raises(DataError, match="none of the splits"):
        load_sets([made(tmp_path / "other", {"old.jsonl": 1, "new.jsonl": 2})])


def test_what_is_not_evident_is_said(tmp_path: Path):
    def said(folder: str, files: Mapping[str, int | str], **wanted: Any) -> str:
        return find_source(made(tmp_path / folder, files), **wanted).read_as

    assert said("one", {"pairs_v2.jsonl": 1}) == "the folder's only data file, pairs_v2.jsonl"
    assert said("two", TWO, split="test") == "configuration harmless"
    assert said("three", NAMED) == "configuration new"
    assert said("four", SHARDED) == said("five", TWO, config="helpful") == ""


def test_a_folder_of_everything_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("qdpo.data.files.folders.MOST_ENTRIES", 3)
    with pytest.raises(DataError, match="more than 3 files and folders"):
        find_source(made(tmp_path, {f"{i}.txt": "" for i in range(4)}))


def test_a_link_in_a_circle_has_an_end(tmp_path: Path):
    (tmp_path / "again").symlink_to(tmp_path)
    assert numbers(find_source(made(tmp_path, {"train.jsonl": 1}))) == [1]


def test_a_defect_names_the_file(tmp_path: Path):
    folder = made(tmp_path, {"data/train-00000-of-00001.jsonl": "version https://git-lfs.github.com/spec/v1\n"})
    with pytest.raises(DataError, match=r"data/train-00000-of-00001\.jsonl is a Git LFS pointer"):
        find_source(folder)
