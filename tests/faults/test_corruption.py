"""Damaged checkpoints, adapters and bases: refused, or passed over for an older one, never taken, never begun anew.

Two hundred seeded mutations: 100 of checkpoints, 50 of an adapter to start from, 50 of a base at a resume. What needs
no run is fast and always runs; of the resumes a sample does.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from faults.mutations import KINDS, copy, damage, files_of, newer_schema
from safetensors.torch import load_file, save_file
from training.tiny import Tiny, TinyRun, train_tiny, train_until

from qdpo.cli.main import main
from qdpo.config.schema import ModelSection
from qdpo.errors import ConfigError, DataError, InputMissingError, QdpoError
from qdpo.files import manifest_problems, write_manifest
from qdpo.hardware import Device
from qdpo.model.load import load_base
from qdpo.model.source import Source
from qdpo.model.weights import check_adapter, check_files, weights_sha256
from qdpo.run.folder import read_record
from qdpo.training.resume import find_checkpoint

SETTINGS = ("train.max_steps=12", "train.save_every=4", "train.eval_every=12", "samples.count=0")


@pytest.fixture(scope="module")
def stopped(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that died at step 10, with checkpoints of steps 4 and 8; not to be changed."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    train_until(tiny, folder, 10, *SETTINGS)
    return folder


@pytest.fixture(scope="module")
def finished(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """The same run, finished; not to be changed."""
    return train_tiny(tiny, tmp_path_factory.mktemp("finished") / "run", *SETTINGS)


@pytest.mark.parametrize("number", range(100))
def test_a_damaged_checkpoint_is_passed_over_or_refused(
    number: int, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(number)
    run = copy(stopped, tmp_path / "run")
    old, new = (run / "checkpoints" / f"step-{step:06d}" for step in (4, 8))
    both = number % 10 == 9
    for folder in (old, new) if both else (new,):
        if number % 20 == 7:
            newer_schema(folder)
            continue
        files = files_of(folder)
        path = draw.choice(files)
        damage(path, KINDS[number % len(KINDS)], draw, [file for file in files if file != path])
    if both:
        with pytest.raises(DataError, match="none of the 2 checkpoints"):
            find_checkpoint(run, read_record(run))
    else:
        assert find_checkpoint(run, read_record(run)) == old
        assert f"checkpoint {new} is damaged and is passed over: " in capsys.readouterr().err


def test_another_runs_checkpoint_is_not_taken(
    stopped: Path, finished: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(stopped, tmp_path / "run")
    shutil.copytree(finished.folder / "checkpoints" / "step-000012", run / "checkpoints" / "step-000012")
    assert find_checkpoint(run, read_record(run)) == run / "checkpoints" / "step-000008"
    assert "step-000012 is damaged and is passed over: it is another run's" in capsys.readouterr().err


def test_a_checkpoint_under_another_steps_name_is_not_taken(stopped: Path, tmp_path: Path) -> None:
    run = copy(stopped, tmp_path / "run")
    (run / "checkpoints" / "step-000008").rename(run / "checkpoints" / "step-000012")
    assert find_checkpoint(run, read_record(run)) == run / "checkpoints" / "step-000004"


def test_lost_checkpoints_are_no_reason_to_begin_anew(
    stopped: Path, finished: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, source in enumerate((stopped, finished.folder)):
        run = copy(source, tmp_path / str(number))
        before = read_record(run)
        shutil.rmtree(run / "checkpoints")
        assert main(["train", "--run-dir", str(run), "--resume"]) == DataError.exit_code
        assert "had saved a checkpoint (step" in capsys.readouterr().err
        assert read_record(run) == before


def test_a_lost_newest_checkpoint_is_said(stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy(stopped, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step-000008")
    assert find_checkpoint(run, read_record(run)) == run / "checkpoints" / "step-000004"
    assert "the run had saved step 8; the newest whole checkpoint is step-000004" in capsys.readouterr().err


@pytest.mark.parametrize("number", [0, 3, pytest.param(9, id="both")])
def test_resuming_from_a_damaged_checkpoint(
    number: int, stopped: Path, finished: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(stopped, tmp_path / "run")
    for step in (4, 8) if number == 9 else (8,):
        path = run / "checkpoints" / f"step-{step:06d}" / "adapter_model.safetensors"
        damage(path, KINDS[number % len(KINDS)], random.Random(number), [])
    code = main(["train", "--run-dir", str(run), "--resume"])
    said = capsys.readouterr().err
    if number == 9:
        assert code == DataError.exit_code
        assert "none of the 2 checkpoints" in said
    else:
        assert code == 0
        assert "resuming from step-000004" in said
        assert TinyRun(run, {}, []).sha256 == finished.sha256


# ------------------------------------------------------------------------------------------------------------ adapter


@pytest.mark.parametrize("number", range(50))
def test_a_damaged_adapter_is_refused(number: int, finished: TinyRun, tmp_path: Path) -> None:
    draw = random.Random(1000 + number)
    adapter = copy(finished.folder / "adapter", tmp_path / "adapter")
    if number % 20 == 7:
        newer_schema(adapter)
    else:
        # without its manifest it would be anybody's adapter, of which only the structure is known
        files = [path for path in files_of(adapter) if path.name != "manifest.json"]
        path = draw.choice(files)
        damage(path, KINDS[number % len(KINDS)], draw, [file for file in files if file != path])
    with pytest.raises((DataError, InputMissingError)):
        check_adapter(adapter)


def test_an_adapter_without_manifest_that_lacks_a_weight_is_refused(
    finished: TinyRun, tiny: Tiny, tmp_path: Path
) -> None:
    adapter = copy(finished.folder / "adapter", tmp_path / "adapter")
    (adapter / "manifest.json").unlink()
    weights = load_file(adapter / "adapter_model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, adapter / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(QdpoError, match=r"finds no value for 1 of 28 tensors"):
        train_tiny(tiny, tmp_path / "run", *SETTINGS, f"model.adapter={adapter}")


def test_an_adapter_of_another_model_is_refused(finished: TinyRun, tiny: Tiny, tmp_path: Path) -> None:
    adapter = copy(finished.folder / "adapter", tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({k: v[..., :3].contiguous() for k, v in weights.items()}, adapter / "adapter_model.safetensors")
    write_manifest(adapter)
    with pytest.raises(QdpoError, match="does not fit"):
        train_tiny(tiny, tmp_path / "run", *SETTINGS, f"model.adapter={adapter}")


# --------------------------------------------------------------------------------------------------------------- base


def resume_with_damaged_base(number: int, stopped: Path, tiny: Tiny, tmp_path: Path) -> None:
    """The resume of a run whose base was damaged in the meantime is refused, and leaves the run as it was."""
    draw = random.Random(2000 + number)
    run, model = copy(stopped, tmp_path / "run"), copy(tiny.model, tmp_path / "model")
    files = [model / "model.safetensors", model / "config.json"]
    path = files[0] if number % 5 else files[1]
    damage(path, KINDS[number % len(KINDS)], draw, [file for file in files if file != path])
    before = {path: path.read_bytes() for path in files_of(run) if path.name != "data_report.json"}
    code = main(["train", "--run-dir", str(run), "--resume", "--model", str(model)])
    assert code in (ConfigError.exit_code, DataError.exit_code, InputMissingError.exit_code)
    after = {path: path.read_bytes() for path in before if path.exists()}
    assert after == before
    assert not (run / "adapter").exists()


@pytest.mark.parametrize("number", [1, 2, 3, 5, 10, 11])
def test_a_base_that_was_damaged_meanwhile_is_refused(number: int, stopped: Path, tiny: Tiny, tmp_path: Path) -> None:
    resume_with_damaged_base(number, stopped, tiny, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("number", range(50))
def test_fifty_damaged_bases(number: int, stopped: Path, tiny: Tiny, tmp_path: Path) -> None:
    resume_with_damaged_base(number, stopped, tiny, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("number", range(100))
def test_a_hundred_resumes_from_damaged_checkpoints(
    number: int, stopped: Path, finished: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(number)
    run = copy(stopped, tmp_path / "run")
    folder = run / "checkpoints" / "step-000008"
    files = files_of(folder)
    path = draw.choice(files)
    damage(path, KINDS[number % len(KINDS)], draw, [file for file in files if file != path])
    assert main(["train", "--run-dir", str(run), "--resume"]) == 0
    assert "resuming from step-000004" in capsys.readouterr().err
    assert TinyRun(run, {}, []).sha256 == finished.sha256


def source_of(folder: Path, revision: str | None = None) -> Source:
    return Source("base", folder, revision)


def shard(model: Path) -> None:
    """Cut the weights into two files with an index, as large models have them."""
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(weights)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, model / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def test_what_a_first_start_sees_of_a_damaged_base(tiny: Tiny, tmp_path: Path) -> None:
    """Without a record there is the structure, and a tensor that is not there must not become random numbers."""
    cut = copy(tiny.model, tmp_path / "cut")
    damage(cut / "model.safetensors", "truncate", random.Random(1), [])
    zeroed = copy(tiny.model, tmp_path / "zeroed")
    content = (zeroed / "model.safetensors").read_bytes()
    (zeroed / "model.safetensors").write_bytes(bytes(64) + content[64:])
    for folder in (cut, zeroed):
        with pytest.raises(DataError, match=r"are broken: model\.safetensors"):
            check_files(source_of(folder))

    sharded = copy(tiny.model, tmp_path / "sharded")
    shard(sharded)
    check_files(source_of(sharded))
    lost = copy(sharded, tmp_path / "lost")
    (lost / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DataError, match=r"is not whole: model-00002-of-00002\.safetensors is missing"):
        check_files(source_of(lost))
    swapped = copy(sharded, tmp_path / "swapped")
    damage(
        swapped / "model-00001-of-00002.safetensors",
        "swap",
        random.Random(1),
        [swapped / "model-00002-of-00002.safetensors"],
    )
    with pytest.raises(DataError, match="does not hold"):
        check_files(source_of(swapped))

    lacking = copy(tiny.model, tmp_path / "lacking")
    weights = load_file(lacking / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, lacking / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"lack 1 tensors \(first: model\.layers\.1\.mlp\.up_proj\.weight\)"):
        load_base(ModelSection(name=str(lacking)), Device("cpu", "CPU", None, 1))


def test_a_flipped_bit_is_found_where_hashes_are_known(tiny: Tiny, tmp_path: Path) -> None:
    revision = "0" * 40
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / revision
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    from qdpo.files import sha256_file

    digest = sha256_file(tiny.model / "model.safetensors")
    shutil.copy(tiny.model / "model.safetensors", blobs / digest)
    (snapshot / "model.safetensors").symlink_to(blobs / digest)
    assert weights_sha256(source_of(snapshot, revision)) == weights_sha256(source_of(tiny.model))
    damage(blobs / digest, "flip a bit", random.Random(3), [])
    with pytest.raises(DataError, match="does not match the SHA-256 that the hub gave it"):
        weights_sha256(source_of(snapshot, revision))

    ours = copy(tiny.model, tmp_path / "ours")
    write_manifest(ours)
    assert manifest_problems(ours) == []
    damage(ours / "model.safetensors", "flip a bit", random.Random(4), [])
    with pytest.raises(DataError, match=r"damaged: model\.safetensors does not match"):
        check_files(source_of(ours))
