"""Whether the files of a base model are what they should be, as far as can be known before they are loaded.

What is known of a folder of unknown origin is its structure: every file in the index is there, every header fits its
file, every tensor has its place. A snapshot from the hub is named by the hashes of its files, and a folder that qdpo
has written has a manifest: there a single flipped bit is found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from qdpo import console
from qdpo.errors import DataError, InputMissingError
from qdpo.files import MANIFEST, digest_of, manifest_problems, sha256_file
from qdpo.model.hashes import file_sha256, known_sha256
from qdpo.model.source import Source

INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".joblib", ".zip", ".h5", ".msgpack")
"""Files of other formats, of which most run code when they are opened."""

WAY_OUT = "get the files again, or give another folder or revision"


def weights_sha256(source: Source) -> str:
    """One SHA-256 over the names and contents of a model's safetensors files; a file that is known is not read again.

    Raises:
        DataError: a file of a hub snapshot is not the one that its name says.
    """
    return digest_of_files(source, {path: file_sha256(path) for path in weight_files(source)})


def known_weights_sha256(source: Source) -> str | None:
    """The same where all files are known and unchanged, else None; nothing is read."""
    found = {path: known_sha256(path) for path in weight_files(source)}
    digests = {path: digest for path, digest in found.items() if digest is not None}
    return digest_of_files(source, digests) if found and len(digests) == len(found) else None


def weight_files(source: Source) -> list[Path]:
    """All safetensors files of a model's folder, by name."""
    return sorted(source.folder.glob("*.safetensors"))


def digest_of_files(source: Source, digests: dict[Path, str]) -> str:
    """One SHA-256 over files and theirs.

    Args:
        source: the model.
        digests: SHA-256 of each of its files, by name.

    Raises:
        DataError: a file of a hub snapshot is not the one that its name says.
    """
    parts = []
    for path, digest in digests.items():
        # in the hub's cache, a link leads to a file that is named by its SHA-256
        blob = path.resolve().name
        if source.revision is not None and re.fullmatch("[0-9a-f]{64}", blob) and blob != digest:
            raise DataError(f"{source.name}: {path.name} does not match the SHA-256 that the hub gave it", WAY_OUT)
        parts += [path.name, digest]
    return digest_of(parts)


def check_files(source: Source) -> None:
    """Look at the weight files of a base without loading them.

    Raises:
        DataError: there are none, one is damaged, or one that the index names is not there.
    """
    folder = source.folder
    files = weight_files(source)
    others = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLES]
    if not files:
        found = f" (there is {', '.join(others[:3])}, which is not opened: such files can run code)" if others else ""
        raise DataError(
            f"the base model {source.name} has no safetensors weights{found}",
            "take a revision that has them, or convert the weights to safetensors where you trust them",
        )
    if others:
        console.note(f"not opened: {', '.join(others[:5])} in the base's folder; only safetensors are read")
    if (folder / MANIFEST).is_file() and (problems := manifest_problems(folder, file_sha256)):
        raise DataError(f"the base model {source.name} is damaged: {problems[0]}", WAY_OUT)
    problems = list(_index_problems(folder, {path.name: _names(source.name, path) for path in files}))
    if problems:
        raise DataError(f"the base model {source.name} is not whole: {problems[0]}", WAY_OUT)


def check_adapter(folder: Path) -> str:
    """Look at the files of a LoRA adapter without loading them; returns the SHA-256 of its weights.

    Raises:
        InputMissingError: there is none.
        DataError: it is damaged, or only there as a pickle.
    """
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        pickled = [found.name for found in sorted(folder.glob("*")) if found.suffix in PICKLES]
        if pickled:
            raise DataError(
                f"the adapter {folder} has no safetensors weights (there is {', '.join(pickled[:3])}, which is not "
                "opened: such files can run code)",
                "convert it to safetensors where you trust it",
            )
        raise InputMissingError(f"there is no adapter in {folder}: {path.name} is missing")
    if (folder / MANIFEST).is_file() and (problems := manifest_problems(folder)):
        raise DataError(f"the adapter {folder} is damaged: {problems[0]}", WAY_OUT)
    _names(str(folder), path)
    return sha256_file(path)


def _names(owner: str, path: Path) -> set[str]:
    """The tensors of a file, whose header must fit its size."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as stream:
            return set(stream.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"the weights of {owner} are broken: {path.name}: {error}", WAY_OUT) from error


def _index_problems(folder: Path, found: dict[str, set[str]]) -> Iterator[str]:
    path = folder / INDEX
    if not path.is_file():
        return
    try:
        wanted = {str(name): str(file) for name, file in json.loads(path.read_text("utf-8"))["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield f"{INDEX} cannot be read: {error!r}"
        return
    for name, file in wanted.items():
        if file not in found:
            yield f"{file} is missing"
        elif name not in found[file]:
            yield f"{file} does not hold {name}"
