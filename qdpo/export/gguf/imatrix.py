"""Importance matrices in llama.cpp's files: for each matrix the mean square of the input that each column meets.

A weight that is multiplied with large inputs does more harm when it is rounded; the search for a block's scale counts
it for more. `llama-imatrix` collects these numbers on a text, `llama-quantize --imatrix` reads them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
import torch

from qdpo.errors import InputMissingError, first_line

DATASETS, CHUNK_COUNT, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
SUMS, COUNTS = ".in_sum2", ".counts"
_HINT = "collect it again: qdpo, or llama-imatrix of llama.cpp, writes it"


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix.

    Attributes:
        means: by GGUF name of a matrix (`blk.3.ffn_down.weight`) float32 [columns], the mean of the squared inputs.
        datasets: names of the texts on which it was collected.
        chunks: pieces of text.
        chunk_size: tokens of a piece; 0 where the file does not say.
    """

    means: Mapping[str, torch.Tensor]
    datasets: Sequence[str] = ()
    chunks: int = 0
    chunk_size: int = 0


def read_imatrix(path: Path) -> Imatrix:
    """Read a GGUF importance matrix, or one in the older binary form (.dat).

    Raises:
        InputMissingError: the file is not there, damaged, or no importance matrix.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) == b"GGUF":
                found = _read_gguf(path)
            else:
                file.seek(0)
                found = _read_dat(file)
    except (OSError, ValueError, IndexError, KeyError, OverflowError, struct.error) as error:
        raise InputMissingError(f"{path} cannot be read as an importance matrix: {first_line(error)}", _HINT) from error
    for name, mean in found.means.items():
        if not (torch.isfinite(mean).all() and (mean >= 0).all()):
            raise InputMissingError(f"{path}: {name} has values that are no mean squares", _HINT)
    return found


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Write a GGUF that `llama-quantize --imatrix` reads, as `llama-imatrix` does."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array(DATASETS, list(imatrix.datasets))
    writer.add_uint32(CHUNK_COUNT, imatrix.chunks)
    writer.add_uint32(CHUNK_SIZE, imatrix.chunk_size)
    count = max(1, imatrix.chunks) * max(1, imatrix.chunk_size)
    for name in sorted(imatrix.means):
        sums = imatrix.means[name].to(torch.float32) * count
        writer.add_tensor(name + SUMS, sums.cpu().numpy()[None])
        writer.add_tensor(name + COUNTS, np.full((1, 1), count, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def checked(imatrix: Imatrix, widths: Mapping[str, int], origin: str) -> dict[str, torch.Tensor]:
    """The means of a model's matrices.

    Args:
        imatrix: what was read or collected.
        widths: by GGUF name the columns of each matrix that is rounded. Embedding and head may lack a mean.
        origin: for messages, the file.

    Raises:
        InputMissingError: it is of another model.
    """
    layers = [name for name in widths if name.startswith("blk.")]
    lacking = [name for name in layers if name not in imatrix.means]
    foreign = [name for name in imatrix.means if name.startswith("blk.") and name not in widths]
    hint = "an importance matrix belongs to one model: give that of this base, or --imatrix none"
    if lacking:
        raise InputMissingError(
            f"{origin} lacks {len(lacking)} of the model's {len(layers)} matrices (first: {lacking[0]})", hint
        )
    if foreign:
        raise InputMissingError(
            f"{len(foreign)} of {len(imatrix.means)} matrices in {origin} are not the model's (first: {foreign[0]})",
            hint,
        )
    means = {name: imatrix.means[name] for name in widths if name in imatrix.means}
    wrong = [name for name, mean in means.items() if len(mean) != widths[name]]
    if wrong:
        raise InputMissingError(
            f"{len(wrong)} of {len(means)} matrices in {origin} have another width than the model's "
            f"(first: {wrong[0]}, {len(means[wrong[0]])} instead of {widths[wrong[0]]} columns)",
            hint,
        )
    return means


def quantize_keys(imatrix: Imatrix, file: str) -> dict[str, str | int]:
    """What a quantised GGUF says of its importance matrix, as `llama-quantize` writes it.

    Args:
        imatrix: what was used.
        file: the name of its file, without the folder.
    """
    keys: dict[str, str | int] = {"quantize.imatrix.file": file}
    if imatrix.datasets:
        keys["quantize.imatrix.dataset"] = imatrix.datasets[0]
    keys["quantize.imatrix.entries_count"] = len(imatrix.means)
    if imatrix.chunks:
        keys["quantize.imatrix.chunks_count"] = imatrix.chunks
    return keys


def _read_gguf(path: Path) -> Imatrix:
    reader = gguf.GGUFReader(path)
    fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    if missing := [key for key in (DATASETS, CHUNK_COUNT, CHUNK_SIZE) if key not in fields]:
        raise ValueError(f"it is a GGUF file without {', '.join(missing)}")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if kinds := {tensor.tensor_type.name for tensor in reader.tensors} - {"F32"}:
        raise ValueError(f"its tensors are {', '.join(sorted(kinds))}, not F32")
    means = {}
    for name in (name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)):
        counts = torch.from_numpy(tensors[name + COUNTS].data.copy()).reshape(-1)
        if len(counts) != 1:
            raise ValueError(f"{name} is of a model with {len(counts)} experts")
        sums = torch.from_numpy(tensors[name + SUMS].data.copy()).reshape(-1)
        # llama.cpp takes columns alike where nothing was counted
        means[name] = sums / counts.round() if counts.item() > 0 else torch.ones_like(sums)
    if not means:
        raise ValueError("it holds no matrix")
    datasets = fields[DATASETS]
    return Imatrix(
        means, [datasets] if isinstance(datasets, str) else datasets, fields[CHUNK_COUNT], fields[CHUNK_SIZE]
    )


def _read_dat(file: BinaryIO) -> Imatrix:
    """Entries of name, calls and sums; then, in files that have it, the number of chunks and the dataset."""
    (entries,) = _integers(file, 1)
    if not 0 < entries < 1 << 20:
        raise ValueError(f"it begins with {entries} as the number of matrices")
    means = {}
    for _ in range(entries):
        (length,) = _integers(file, 1)
        name = _exactly(file, length, 1 << 10).decode()
        calls, columns = _integers(file, 2)
        sums = torch.frombuffer(bytearray(_exactly(file, 4 * columns, 1 << 28)), dtype=torch.float32)
        means[name] = sums / max(1, calls)
    if not (rest := file.read(4)):
        return Imatrix(means)
    (chunks,) = struct.unpack("<i", rest)
    (length,) = _integers(file, 1)
    return Imatrix(means, [_exactly(file, length, 1 << 16).decode()] if length else [], chunks)


def _integers(file: BinaryIO, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}i", _exactly(file, 4 * count, 4 * count))


def _exactly(file: BinaryIO, count: int, limit: int) -> bytes:
    if not 0 < count <= limit:
        raise ValueError(f"a length of {count} bytes at byte {file.tell():,}")
    found = file.read(count)
    if len(found) != count:
        raise ValueError(f"it ends after {file.tell():,} bytes, within a matrix")
    return found
