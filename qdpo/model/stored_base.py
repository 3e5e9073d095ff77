"""The NF4 base, kept under the cache: what starts from it does not read the 16-bit files, four times as large.

One folder for each base and way of rounding, named by what decides its bits: the hash of the base's files, which layers
are rounded, from which type, in which blocks, and on what kind of device. It holds the packed weights with their
scales, the other tensors as they are in the base, `base.json`, and a manifest. It appears whole or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from qdpo import console
from qdpo.errors import DiskError, OutputError, QdpoError, first_line
from qdpo.files import (
    HEADROOM,
    MANIFEST,
    STAGING_PREFIX,
    digest_of,
    free_bytes,
    is_running,
    manifest_problems,
    read_json,
    size_of,
    staged_folder,
    sync_folder,
    write_json,
)
from qdpo.hardware import GIB
from qdpo.model.blueprint import Blueprint
from qdpo.model.hashes import file_sha256, mark_of, remember
from qdpo.model.nf4 import Quantization
from qdpo.model.one_pass import NotFinite, OnePass
from qdpo.model.rounding import NESTED_BLOCKSIZE, dequantize, values_of_nf4
from qdpo.model.tensors import CODES, DTYPES, TensorFiles, TensorPlace, write_folder
from qdpo.model.weights import known_weights_sha256, weights_sha256
from qdpo.paths import cache_folder

VERSION = 1
"""Of the layout of the folder, and of the rounding."""
RECORD = "base.json"
SMALLEST = 1_000_000_000
"""Bytes of a base from which `auto` keeps it: a smaller one is rounded in a few seconds."""
KEPT = 4
"""Bases that are kept; the least recently used go first."""


class StoredBase:
    """A base in NF4 on the disk.

    Args:
        folder: where it lies.
        load_dtype: type that its weights have when they are dequantised.

    Raises:
        QdpoError: it cannot be read.

    Attributes:
        places: of each tensor of the base, its type and shape there; where the bytes lie is not said.
        quantization: how it was rounded.
        weights_sha256: of the base's files.
    """

    def __init__(self, folder: Path, load_dtype: torch.dtype) -> None:
        record = read_json(folder / RECORD)
        self.weights_sha256 = str(record["weights_sha256"])
        self.folder = folder
        self.packed = TensorFiles.of_folder(folder)
        self.quantization = Quantization.from_record({**record, "load_dtype": str(load_dtype).removeprefix("torch.")})
        self.places = {
            name: TensorPlace(DTYPES[code], tuple(shape), folder, 0, 0) for name, code, shape in record["tensors"]
        }

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def read(self, name: str) -> torch.Tensor:
        """A tensor of the base, on the CPU: a rounded one dequantised, in float32; another as it is in the base."""
        stored = self.packed.read(name)
        if name.removesuffix(".weight") not in self.quantization.modules:
            return stored
        return dequantize(stored, self._state(name)).float()

    def _state(self, name: str) -> Any:
        from bitsandbytes.functional import QuantState, create_dynamic_map

        how, place = self.quantization, self.places[name]
        state = QuantState(
            absmax=self.packed.read(f"{name}.absmax"),
            shape=torch.Size(place.shape),
            code=values_of_nf4(),
            blocksize=how.blocksize,
            quant_type="nf4",
            dtype=how.load_dtype,
        )
        if how.double_quant:
            state.nested, state.offset = True, self.packed.read(f"{name}.nested_offset")
            state.state2 = QuantState(
                absmax=self.packed.read(f"{name}.nested_absmax"),
                code=create_dynamic_map(),
                blocksize=NESTED_BLOCKSIZE,
                dtype=torch.float32,
            )
        return state


def stored_base(weights: str, files: TensorFiles, how: Quantization, device: str) -> StoredBase | None:
    """The base in the store, None where there is none; one that is damaged is removed, with a line.

    Args:
        weights: SHA-256 of the base's files.
        files: their tensors.
        how: the rounding.
        device: kind of the device that rounded it, `cuda` or `cpu`.
    """
    if not all(f"{module}.weight" in files for module in how.modules):
        return None
    folder = store() / _name(weights, files, how, device)
    if not folder.is_dir():
        return None
    try:
        # the files' hashes are remembered: they are computed once after each change of time, size or inode
        problems = manifest_problems(folder, file_sha256)
        if not problems:
            found = StoredBase(folder, how.load_dtype)
            os.utime(folder)
            return found
    except (QdpoError, OSError, KeyError, TypeError, ValueError) as error:
        problems = [first_line(error)]
    console.note(f"the NF4 base in {folder} is damaged ({problems[0]}): rounding the base anew")
    shutil.rmtree(folder, ignore_errors=True)
    return None


def find_or_make(plan: Blueprint, setting: str, device: torch.device) -> StoredBase | None:
    """The base in the store, made where it is to be kept and is not there yet; None where it is not kept.

    Args:
        plan: the base.
        setting: `model.nf4_cache`.
        device: where its layers are rounded.

    Raises:
        QdpoError: the base cannot be read.
    """
    if setting == "off":
        return None
    weights = known_weights_sha256(plan.source)
    if weights is None and _may_be_there(plan):
        weights = weights_sha256(plan.source)
    if weights and (found := stored_base(weights, plan.files, plan.quantization, device.type)):
        return found
    work = OnePass(plan, device)
    size = sum(tensor.nbytes for tensor in work.planned())
    base = sum(place.path.stat().st_size for place in {p.path: p for p in plan.files.places.values()}.values())
    if setting == "auto" and base < SMALLEST:
        return None
    wanted = int(HEADROOM * size) + (base if setting == "auto" else 0)
    if (free := free_bytes(store())) < wanted:
        console.note(
            f"the NF4 base ({size / GIB:.1f} GiB) is not kept for the next start: {store()} has {free / GIB:.1f} GiB "
            f"free, {wanted / GIB:.1f} GiB are wanted; QDPO_CACHE names another disk"
        )
        return None
    return _make(plan, work, size, device.type)


def store() -> Path:
    """Where bases are kept."""
    return cache_folder("base")


def _make(plan: Blueprint, work: OnePass, size: int, device: str) -> StoredBase | None:
    _sweep()
    # The hash that names the folder is known when everything has been read.
    arrival = store() / f"{STAGING_PREFIX}arrival-{os.getpid()}"
    tensors = iter(work)

    def read(name: str) -> torch.Tensor:
        found, tensor = next(tensors)
        assert found == name
        return tensor.cpu()

    try:
        with staged_folder(arrival, replace=True, needed=size) as staging:
            write_folder(staging, work.planned(), read)
            for _ in tensors:  # hashes what comes after the last tensor
                pass
            weights = work.sha256
            write_json(staging / RECORD, _record(plan, weights, device))
        folder = store() / _name(weights, plan.files, plan.quantization, device)
        if not _moved(arrival, folder):
            console.note(f"another process has kept the same base in {folder}")
        sync_folder(store())
    except NotFinite:
        return None  # the checks before the first step say which
    except (DiskError, OutputError, OSError) as error:
        console.note(f"the NF4 base is not kept for the next start: {first_line(error)}")
        return None
    finally:
        shutil.rmtree(arrival, ignore_errors=True)
    for name, entry in read_json(folder / MANIFEST)["files"].items():
        remember(folder / name, mark_of(folder / name), entry["sha256"])
    console.note(
        f"the NF4 base is kept in {folder} ({size_of(folder) / GIB:.2f} GiB): the next start reads it instead of the "
        "base; --set model.nf4_cache=off keeps none"
    )
    _make_room(folder)
    return StoredBase(folder, plan.quantization.load_dtype)


def _moved(arrival: Path, folder: Path) -> bool:
    """Give a folder its name; false where another process has just made the same."""
    try:
        arrival.rename(folder)
    except OSError:
        if not (folder / MANIFEST).is_file():
            raise
        return False
    return True


def _record(plan: Blueprint, weights: str, device: str) -> dict[str, Any]:
    how, places = plan.quantization, plan.files.places
    return {
        "schema": VERSION,
        "name": plan.source.name,
        "weights_sha256": weights,
        "files": _sizes(plan.files),
        "method": "nf4",
        "double_quant": how.double_quant,
        "blocksize": how.blocksize,
        "device": device,
        "modules": sorted(how.modules),
        "tensors": [[name, CODES[places[name].dtype], list(places[name].shape)] for name in plan.files],
    }


def _sizes(files: TensorFiles) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in {place.path for place in files.places.values()}}


def _name(weights: str, files: TensorFiles, how: Quantization, device: str) -> str:
    """The name of a base's folder."""
    # float32 holds every number of the other two: rounded from it, the bits are those of the stored type
    exact = all(how.load_dtype in (files.places[f"{module}.weight"].dtype, torch.float32) for module in how.modules)
    parts = [str(VERSION), weights, str(how.double_quant), str(how.blocksize), device, *sorted(how.modules)]
    return digest_of([*parts, "as stored" if exact else str(how.load_dtype)])[:40]


def _may_be_there(plan: Blueprint) -> bool:
    """Whether a kept base was made from files of these names and sizes: then hashing them is worth its time."""
    for path in store().glob(f"*/{RECORD}"):
        try:
            if read_json(path).get("files") == _sizes(plan.files):
                return True
        except QdpoError:
            continue
    return False


def _sweep() -> None:
    """Remove what processes that were killed have left."""
    for path in store().glob(f"{STAGING_PREFIX}*"):
        process = path.name.rpartition("-")[2]
        if process.isdigit() and not is_running(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _make_room(newest: Path) -> None:
    """Remove the bases that were not used for longest."""
    kept = [path.parent for path in store().glob(f"*/{RECORD}") if path.parent != newest]
    kept.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for folder in kept[KEPT - 1 :]:
        console.note(f"the NF4 base in {folder} was not used for longest and is removed: {KEPT} are kept")
        shutil.rmtree(folder, ignore_errors=True)
