"""The files of a base read once, from end to end: the bytes that are hashed are the bytes that are rounded."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import torch

from qdpo.errors import InputMissingError
from qdpo.files import CHUNK_BYTES
from qdpo.model.blueprint import Blueprint, Held
from qdpo.model.hashes import mark_of, remember
from qdpo.model.rounding import NESTED_BLOCKSIZE, quantize
from qdpo.model.tensors import PlannedTensor, is_finite, is_rotary, read_exactly
from qdpo.model.weights import digest_of_files, weight_files
from qdpo.progress import Progress


class NotFinite(Exception):
    """A tensor holds NaN or an infinity, which rounding would hide."""


class OnePass:
    """Reads and rounds a base, one tensor in memory at a time.

    Args:
        plan: the base.
        device: where its layers are rounded.

    Attributes:
        order: names of its tensors, as they lie in the files.
    """

    def __init__(self, plan: Blueprint, device: torch.device) -> None:
        self._plan, self._device = plan, device
        self._digests: dict[Path, str] = {}
        files = plan.files.places
        places = sorted((files[name].path, files[name].start, name) for name in files if not is_rotary(name))
        self.order = [name for _, _, name in places]

    @property
    def sha256(self) -> str:
        """One SHA-256 over the files, as `weights_sha256` has it; known when all tensors have been read.

        Raises:
            DataError: a file of a hub snapshot is not the one that its name says.
        """
        return digest_of_files(self._plan.source, self._digests)

    def planned(self) -> list[PlannedTensor]:
        """What will come, in the order in which it comes."""
        how, planned = self._plan.quantization, []
        for name in self.order:
            place = self._plan.files.places[name]
            if name.removesuffix(".weight") not in how.modules:
                planned.append(PlannedTensor(name, place.dtype, place.shape))
                continue
            weights = place.nbytes // place.dtype.itemsize
            scales = -(-weights // how.blocksize)
            planned.append(PlannedTensor(name, torch.uint8, ((weights + 1) // 2, 1)))
            planned.append(
                PlannedTensor(f"{name}.absmax", torch.uint8 if how.double_quant else torch.float32, (scales,))
            )
            if how.double_quant:
                planned.append(PlannedTensor(f"{name}.nested_absmax", torch.float32, (-(-scales // NESTED_BLOCKSIZE),)))
                planned.append(PlannedTensor(f"{name}.nested_offset", torch.float32, ()))
        return planned

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors as `planned` says: quantized layers packed, the rest as stored.

        Raises:
            NotFinite: a tensor has values that are not finite.
            InputMissingError: a file has become shorter.
        """
        paths = weight_files(self._plan.source)
        with Progress("reading and rounding the base", sum(path.stat().st_size for path in paths)) as progress:
            for path in paths:
                yield from self._rounded(path, progress)

    def _rounded(self, path: Path, progress: Progress) -> Iterator[tuple[str, torch.Tensor]]:
        how = self._plan.quantization
        for name, tensor in self._file(path, progress):
            if not is_finite(tensor):
                raise NotFinite(name)
            if name.removesuffix(".weight") not in how.modules:
                yield name, tensor
            else:
                packed, state = quantize(tensor.to(self._device, how.load_dtype), how.blocksize, how.double_quant)
                yield name, packed
                yield f"{name}.absmax", state.absmax
                if how.double_quant:
                    yield f"{name}.nested_absmax", state.state2.absmax
                    yield f"{name}.nested_offset", state.offset
            del tensor  # else it would live beside the next one while that is read

    def _file(self, path: Path, progress: Progress) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of one file in their order; all its bytes are hashed on the way."""
        places = self._plan.files.places
        inside = sorted((places[name].start, name) for name in places if places[name].path == path)
        mark, digest = mark_of(path), hashlib.sha256()
        with path.open("rb", buffering=0) as stream:
            at = 0
            for start, name in inside:
                if start < at:
                    raise InputMissingError(f"{path}: tensor {name} overlaps another", "fetch the file again")
                _hash(stream, digest, start - at, progress)
                place = places[name]
                buffer = read_exactly(stream, place.nbytes, f"{path} ends within tensor {name}")
                digest.update(buffer.numpy().data)
                at = start + place.nbytes
                progress.advance(place.nbytes)
                if not is_rotary(name):
                    yield name, buffer.view(place.dtype).reshape(place.shape)
                del buffer
            _hash(stream, digest, path.stat().st_size - at, progress)
        self._digests[path] = digest.hexdigest()
        remember(path, mark, self._digests[path])


def rounded_in_memory(plan: Blueprint) -> tuple[Held, str] | None:
    """A base for the CPU that is not kept, and the SHA-256 of its files; None where values are not finite.

    Raises:
        DataError, InputMissingError: a file is not what it should be.
    """
    work = OnePass(plan, torch.device("cpu"))
    try:
        held = Held(iter(work))
    except NotFinite:
        return None  # the checks before the first step say which
    return held, work.sha256


def _hash(stream: io.RawIOBase, digest: hashlib._Hash, nbytes: int, progress: Progress) -> None:
    """Hash the next bytes of a file, between its tensors."""
    while nbytes > 0:
        chunk = stream.read(min(nbytes, CHUNK_BYTES))
        if not chunk:
            raise InputMissingError("a file of the base has become shorter while it was read", "get it again")
        digest.update(chunk)
        progress.advance(len(chunk))
        nbytes -= len(chunk)
