"""Reading and writing safetensors one tensor at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qdpo.errors import InputMissingError
from qdpo.model.tensors import PlannedTensor, TensorFiles, write_folder


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(33, 7, dtype=torch.bfloat16),
        "b.weight": torch.randn(5, 3, 2),
        "c.count": torch.arange(9),
        "d.scalar": torch.tensor(3.5, dtype=torch.float16),
        "e.empty": torch.empty(0, 4),
        "f.flag": torch.tensor([True, False]),
    }


def plan_of(tensors: dict[str, torch.Tensor]) -> list[PlannedTensor]:
    return [PlannedTensor(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]


@pytest.mark.parametrize("shard_bytes", [10**9, 100])
def test_safetensors_reads_what_is_written(tmp_path: Path, shard_bytes: int) -> None:
    tensors = some_tensors()
    write_folder(tmp_path, plan_of(tensors), tensors.__getitem__, shard_bytes=shard_bytes)
    if shard_bytes == 100:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
        assert len(set(index["weight_map"].values())) > 2
    read = {k: v for path in tmp_path.glob("*.safetensors") for k, v in load_file(path).items()}
    ours = TensorFiles.of_folder(tmp_path)
    assert read.keys() == tensors.keys() == set(ours)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
        assert torch.equal(ours.read(name), tensor)


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    tensors = some_tensors()
    save_file(tensors, tmp_path / "model.safetensors")
    files = TensorFiles.of_folder(tmp_path)
    assert all(torch.equal(files.read(name), tensor) for name, tensor in tensors.items())


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(some_tensors(), path)
    data = path.read_bytes()
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(InputMissingError):
            TensorFiles([path])


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{}x",
        b'{"a": 1}',
        b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}',
        b"\xff\xfe",
    ],
)
def test_nonsense_headers_are_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(InputMissingError):
        TensorFiles([path])


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    tensors = some_tensors()
    write_folder(tmp_path, plan_of(tensors), tensors.__getitem__, shard_bytes=100)
    index = tmp_path / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    shard = listed["weight_map"]["a.weight"]
    index.write_text(json.dumps({**listed, "weight_map": {**listed["weight_map"], "lost": shard}}))
    with pytest.raises(InputMissingError, match="first: lost"):
        TensorFiles.of_folder(tmp_path)
    (tmp_path / shard).unlink()
    with pytest.raises(InputMissingError, match="is missing"):
        TensorFiles.of_folder(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputMissingError, match="neither"):
        TensorFiles.of_folder(tmp_path)


def test_writer_refuses_a_tensor_that_is_not_as_planned(tmp_path: Path) -> None:
    plan = [PlannedTensor("a", torch.float32, (2, 2))]
    with pytest.raises(ValueError, match="planned"):
        write_folder(tmp_path, plan, lambda name: torch.zeros(2, 3))
