"""Safetensors files, read and written one tensor at a time.

`safetensors`' own functions map whole files into memory or want a whole shard at once. Exports must run beside a base
that is larger than the memory, so here a tensor is read with one `read` and written with one `write`. The format is
an 8-byte little-endian length, a JSON header with dtype, shape and byte range of every tensor, then the bytes
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from qdpo.errors import InputMissingError
from qdpo.files import write_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
MAX_HEADER_BYTES = 100_000_000

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorPlace:
    """Where one tensor lies: its dtype, shape, file, and the byte range in it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    path: Path
    start: int
    nbytes: int


class TensorSource(Protocol):
    """Tensors by name: of files, or computed when they are read."""

    @property
    def places(self) -> Mapping[str, TensorPlace]: ...
    def __contains__(self, name: str) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...
    def read(self, name: str) -> torch.Tensor: ...


class TensorFiles:
    """The tensors of some safetensors files, by name; nothing is kept in memory but the headers.

    Args:
        paths: the files; their tensors must have different names.

    Raises:
        InputMissingError: a file is missing, cut short or not safetensors, or two files hold the same tensor.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.places: dict[str, TensorPlace] = {}
        for path in paths:
            for name, place in _read_header(path):
                if name in self.places:
                    raise InputMissingError(f"tensor {name} is in both {self.places[name].path} and {path}")
                self.places[name] = place

    @classmethod
    def of_folder(cls, folder: Path) -> TensorFiles:
        """The weights of a model folder in the Hugging Face layout, sharded or not.

        Raises:
            InputMissingError: the folder has no safetensors weights, or its index and its files disagree.
        """
        index = folder / INDEX
        if not index.is_file():
            if not (folder / WEIGHTS).is_file():
                raise InputMissingError(
                    f"{folder} has neither {WEIGHTS} nor {INDEX}",
                    "qdpo reads safetensors only (pickled weights are never read); convert the model with transformers",
                )
            return cls([folder / WEIGHTS])
        try:
            weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputMissingError(f"{index} cannot be read: {error}", "fetch the model again") from error
        files = cls(folder / name for name in sorted(set(weight_map.values())))
        if lost := sorted(weight_map.keys() - files.places.keys()):
            raise InputMissingError(
                f"{len(lost)} of {len(weight_map)} tensors that {index} lists are in no shard (first: {lost[0]})",
                "fetch the model again",
            )
        return files

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, as stored, in memory of its own."""
        place = self.places[name]
        with place.path.open("rb", buffering=0) as stream:
            stream.seek(place.start)
            buffer = read_exactly(stream, place.nbytes, f"{place.path} ends within tensor {name}")
        return buffer.view(place.dtype).reshape(place.shape)

    def dtype(self, name: str) -> torch.dtype:
        """The type of a tensor."""
        return self.places[name].dtype


def read_exactly(stream: io.RawIOBase, nbytes: int, otherwise: str) -> torch.Tensor:
    """The next bytes of a file, in memory of their own.

    Args:
        stream: the file.
        nbytes: how many.
        otherwise: what to say when there are fewer.

    Raises:
        InputMissingError: the file ends before.
    """
    buffer = torch.empty(nbytes, dtype=torch.uint8)
    view, done = buffer.numpy().data, 0
    while done < nbytes:
        if not (got := stream.readinto(view[done:])):
            raise InputMissingError(otherwise, "fetch the file again")
        done += got
    return buffer


def is_rotary(name: str) -> bool:
    """Whether a tensor is a table that old checkpoints hold and models compute themselves."""
    return name.endswith("rotary_emb.inv_freq")


def _read_header(path: Path) -> Iterator[tuple[str, TensorPlace]]:
    """The tensors that a file lists, checked against the file's size."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            header: dict[str, Any] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            dtype, shape = DTYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"])
            start, end = entry["data_offsets"]
            if not 0 <= start <= end <= size - 8 - length or end - start != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"tensor {name} does not fit its byte range {start}..{end}")
            yield name, TensorPlace(dtype, shape, path, 8 + length + start, end - start)
    except FileNotFoundError as error:
        raise InputMissingError(f"{path} is missing", "fetch the model again") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputMissingError(f"{path} is not a whole safetensors file: {error}", "fetch the file again") from error


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that will be written: its name, dtype and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_folder(
    folder: Path,
    plan: Sequence[PlannedTensor],
    read: Callable[[str], torch.Tensor],
    *,
    shard_bytes: int = SHARD_BYTES,
    written: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Write tensors as `model.safetensors`, or as numbered shards and an index when they need more than one.

    Args:
        folder: where the files go.
        plan: all tensors, in the order in which they are written.
        read: gives the tensor of a name, with the planned dtype and shape; one is alive at a time.
        shard_bytes: size above which a new shard begins.
        written: called with the bytes of each tensor once it is on disk.
    """
    shards: list[list[PlannedTensor]] = [[]]
    for tensor in plan:
        if shards[-1] and sum(t.nbytes for t in shards[-1]) + tensor.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        _write_shard(folder / WEIGHTS, shards[0], read, written)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / name, shard, read, written)
        weight_map |= {tensor.name: name for tensor in shard}
    total = sum(tensor.nbytes for tensor in plan)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def _write_shard(
    path: Path, shard: list[PlannedTensor], read: Callable[[str], torch.Tensor], written: Callable[[int], None]
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in shard:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # the data begins aligned, as safetensors' own writer does it
    with path.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        for tensor in shard:
            data = read(tensor.name)
            if data.dtype != tensor.dtype or tuple(data.shape) != tensor.shape:
                raise ValueError(f"{tensor.name} is {data.dtype} {tuple(data.shape)}, planned was {tensor}")
            stream.write(data.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            del data  # else it would live beside the next one while that is read
            written(tensor.nbytes)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor has no NaN and nothing infinite; one transfer, and no second tensor of its size."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # the largest and the smallest value show an infinity, and a NaN is both
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all())
