"""A run whose base is kept in NF4: after the first start nothing reads the 16-bit files; the results are the same."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from training.tiny import StopAt, Stopped, read_run, train_tiny, with_callbacks

import qdpo
from qdpo.cli.main import main
from qdpo.export.source import load_run, quantization_of
from qdpo.files import read_json, sha256_file
from qdpo.model import hashes, load
from qdpo.model.merged import MergedModel
from qdpo.model.one_pass import OnePass
from qdpo.model.tensors import TensorFiles
from qdpo.progress import Progress
from qdpo.run.folder import read_record as read

if TYPE_CHECKING:
    from training.tiny import Tiny

SETTINGS = ("train.max_steps=4", "train.save_every=2", "train.eval_every=2", "samples.count=0")
LONG_AGO = 1_600_000_000 * 10**9


@dataclass(frozen=True)
class World:
    """A finished run with a kept base, the same one without, and the base in a folder of its own."""

    base: Path
    run: Path
    plain: Path


@pytest.fixture(scope="module")
def world(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("kept")
    base = folder / "base"
    shutil.copytree(tiny.model, base)
    for path in base.iterdir():
        os.utime(path, ns=(LONG_AGO, LONG_AGO))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QDPO_CACHE", str(folder / "cache"))
        patch.setattr(hashes, "_known", {})
        name = f"model.name={base}"
        train_tiny(tiny, folder / "plain", *SETTINGS, name, "model.nf4_cache=off")
        with pytest.raises(Stopped), with_callbacks(StopAt(3)):
            train_tiny(tiny, folder / "run", *SETTINGS, name, "model.nf4_cache=on")
        assert len(list((folder / "cache" / "base").iterdir())) == 1
        scramble(base)
        patch.setattr(hashes, "_known", {})  # as in another process
        yield World(base, folder / "run", folder / "plain")


def scramble(folder: Path) -> None:
    """Zeros in all weights, but the same size, time and inode: whoever reads them gets something else."""
    for path in folder.glob("*.safetensors"):
        stat, content = path.stat(), path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        with path.open("r+b") as stream:
            stream.seek(start)
            stream.write(bytes(len(content) - start))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.fixture(scope="module")
def finished(tiny: Tiny, world: World) -> Path:
    """The interrupted run, resumed after its base was scrambled."""
    train_tiny(tiny, world.run, *SETTINGS, f"model.name={world.base}", "model.nf4_cache=on", resume=True)
    return world.run


def test_a_resumed_run_ends_as_one_without_a_kept_base(world: World, finished: Path) -> None:
    assert read_run(finished).sha256 == read_run(world.plain).sha256
    assert read_run(finished).record["base"] == read_run(world.plain).record["base"]


@pytest.mark.parametrize("format", ["safetensors", "gguf"])
def test_exports_are_the_same_and_pass(
    format: str, world: World, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quant = ["--quant", "f16"] if format == "gguf" else []
    given = ["--run", str(finished), "--format", format, *quant, "--out", str(tmp_path / "kept")]
    assert main(["merge-export", *given]) == 0, capsys.readouterr().err
    verdict = json.loads((tmp_path / "kept" / "verify.json").read_text())
    assert verdict["verdict"] == "passed"
    # without the store, the scrambled files are found out or merged: nothing else has the weights
    unread = tmp_path / "no-cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QDPO_CACHE", str(unread))
        patch.setattr(hashes, "_known", {})
        assert main(["merge-export", *given[:-1], str(tmp_path / "other"), "--no-verify"]) != 0
    assert "are not those that were trained on" in " ".join(capsys.readouterr().err.split())


def test_a_merge_from_the_kept_base_is_the_merge_from_the_shards(
    tiny: Tiny, world: World, finished: Path, tmp_path: Path
) -> None:
    given = ["--run", str(finished), "--format", "safetensors", "--no-verify", "--out"]
    assert main(["merge-export", *given, str(tmp_path / "kept")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QDPO_CACHE", str(tmp_path / "empty"))
        patch.setattr(hashes, "_known", {})
        record = json.loads((finished / "run.json").read_text())
        copy = Path(shutil.copytree(finished, tmp_path / "copy"))
        config = (copy / "config.yaml").read_text()
        (copy / "config.yaml").write_text(config.replace("nf4_cache: 'on'", "nf4_cache: 'off'"))
        (copy / "run.json").write_text(json.dumps({**record, "base": {**record["base"], "folder": str(tiny.model)}}))
        assert main(["merge-export", "--run", str(copy), *given[2:], str(tmp_path / "shards")]) == 0
    assert not list((tmp_path / "empty").glob("base/*"))
    assert sha256_file(tmp_path / "kept" / "model.safetensors") == sha256_file(
        tmp_path / "shards" / "model.safetensors"
    )


class Reads:
    """Every reading of a base's weights, in the order in which it was: what was done, and with which file or tensor."""

    def __init__(self, base: Path, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, str]] = []
        whole, one, own = hashes.sha256_file, TensorFiles.read, OnePass._file

        def hashed(path: Path, advance: Callable[[int], object]) -> str:
            if path.parent == base:
                self.seen.append(("hash", path.name))
            return whole(path, advance)

        def read(files: TensorFiles, name: str) -> torch.Tensor:
            if files.places[name].path.parent == base:
                self.seen.append(("tensor", name))
            return one(files, name)

        def passed(work: OnePass, path: Path, progress: Progress) -> Iterator[tuple[str, torch.Tensor]]:
            self.seen.append(("pass", path.name))
            return own(work, path, progress)

        patch.setattr(hashes, "sha256_file", hashed)
        patch.setattr(TensorFiles, "read", read)
        patch.setattr(OnePass, "_file", passed)
        patch.setattr(load, "load_by_transformers", lambda *args: pytest.fail("transformers has read the base"))


@pytest.mark.parametrize("kept", [True, False])
def test_export_with_verification_reads_the_base_once_or_not_at_all(
    kept: bool, tiny: Tiny, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Path(shutil.copytree(tiny.model, tmp_path / "base"))
    for path in base.iterdir():
        os.utime(path, ns=(LONG_AGO, LONG_AGO))
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    for file in ("run.json", "config.yaml"):
        text = (run / file).read_text()
        (run / file).write_text(text.replace(read_run(finished).record["base"]["name"], str(base)))
    monkeypatch.setenv("QDPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "_known", {})
    given = ["merge-export", "--run", str(run), "--format", "safetensors"]
    if kept:
        assert main([*given, "--no-verify"]) == 0
        monkeypatch.setattr(hashes, "_known", {})
    reads = Reads(base, monkeypatch)
    assert main(given) == 0
    assert reads.seen == ([] if kept else [("pass", "model.safetensors")])
    assert main(["verify", str(run / "export" / "safetensors")]) == 0
    assert main([*given, "--merge-base", "original", "--no-verify"]) == 0
    assert len([what for what in reads.seen if what[0] == "tensor"]) == 21  # it is seen when the base is read


def test_the_base_alone_is_what_the_adapter_was_trained_on(tiny: Tiny, world: World, finished: Path) -> None:
    kept = load_run(finished).base_as_trained()
    shards = MergedModel(
        read_json(tiny.model / "config.json"), TensorFiles.of_folder(tiny.model), None, quantization_of(read(finished))
    )
    assert kept.names == shards.names
    for name in kept.names:
        assert torch.equal(kept.read(name), shards.read(name))
        assert (kept.stored_dtype(name), kept.shape(name)) == (shards.stored_dtype(name), shards.shape(name))


def test_the_original_base_is_read_from_the_shards(world: World, finished: Path, tmp_path: Path) -> None:
    given = ["--run", str(finished), "--format", "safetensors", "--no-verify"]
    assert main(["merge-export", *given, "--merge-base", "original", "--out", str(tmp_path / "a")]) == 0
    assert main(["merge-export", *given, "--out", str(tmp_path / "b")]) == 0
    assert sha256_file(tmp_path / "a" / "model.safetensors") != sha256_file(tmp_path / "b" / "model.safetensors")


def test_chat_and_evaluation_start_from_it(tiny: Tiny, world: World, finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    for file in ("config.yaml", "run.json"):
        text = (copy / file).read_text().replace(str(world.base), str(tiny.model))
        (copy / file).write_text(text.replace("nf4_cache: 'on'", "nf4_cache: 'off'"))
    kept, shards, zeros = (qdpo.Run.open(path) for path in (finished, copy, world.plain))
    question = "where is the fox?"
    answers, pairs = [], []
    # the last one reads the zeros, and so learns their hash
    for run in (kept, shards, zeros):
        answers.append(run.answer(question, max_new_tokens=8))
        run.evaluate()
        pairs.append((run.path / "evaluation" / "pairs.jsonl").read_text())
    assert (answers[0], pairs[0]) == (answers[1], pairs[1])
    assert answers[0] != answers[2]
    assert pairs[0] != pairs[2]
