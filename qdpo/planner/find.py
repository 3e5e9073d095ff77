"""The shape of a base without its weights: the shipped presets' table, a local config.json, or one small download."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdpo.errors import DataError, UnavailableError
from qdpo.model.source import EMBEDDED, find, is_local
from qdpo.planner.shapes import SHIPPED, Shape, shape_of


@dataclass(frozen=True)
class Base:
    """A base as far as a plan needs it.

    Attributes:
        shape: its shape.
        origin: where that comes from.
        stored: bytes of its weight files; None where only the shape is known.
    """

    shape: Shape
    origin: str
    stored: int | None = None


def find_base(name: str, revision: str | None = None) -> Base:
    """The shape of a base: of a hub model's revision, a local folder, or `quickstart`.

    Raises:
        UnavailableError: the hub cannot be reached, or the planner does not know this kind of model.
        DataError: config.json cannot be read.
    """
    if is_local(name):
        return _local(find(name).folder, name, "embedded" if name == EMBEDDED else "local")
    if (shape := SHIPPED.get(name)) is not None and revision is None:
        return Base(shape, "known shape, nothing downloaded")
    return _hub(name, revision)


def _local(folder: Path, name: str, origin: str) -> Base:
    files = list(folder.glob("*.safetensors"))
    stored = sum(path.stat().st_size for path in files) if files else None
    config = _read(folder / "config.json", name)
    shape = shape_of(config, name)
    counted = sum(map(_weights_in, files))
    return Base(_checked(shape, counted, name), f"{origin} config.json", stored)


def _hub(name: str, revision: str | None) -> Base:
    import httpx
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        path = hf_hub_download(name, "config.json", revision=revision)
        shape = shape_of(_read(Path(path), name), name)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError, ConnectionError) as error:
        raise UnavailableError(
            f"the hub cannot be reached and config.json of {name} is not in the local cache",
            "go online once, or give a local folder with --model PATH",
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise UnavailableError(f"the hub has no config.json of {name}: {str(error).splitlines()[0]}") from error
    try:
        counts = HfApi().get_safetensors_metadata(name, revision=revision).parameter_count
    except Exception:
        # the header only confirms what config.json says; a repository without safetensors fails later, with a reason
        return Base(shape, "config.json from the hub; its weights' header could not be read")
    stored = sum(count * {"F32": 4, "F64": 8}.get(kind, 2) for kind, count in counts.items())
    return Base(_checked(shape, sum(counts.values()), name), "config.json and header from the hub", stored)


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"{name}: config.json holds {type(config).__name__}, expected an object")
    return config


def _weights_in(path: Path) -> int:
    """Weights of a safetensors file by its header; 0 when it is damaged."""
    try:
        with path.open("rb") as stream:
            header = json.loads(stream.read(min(int.from_bytes(stream.read(8), "little"), 100 << 20)))
    except (OSError, ValueError):
        return 0
    return sum(math.prod(entry.get("shape", [0])) for name, entry in header.items() if name != "__metadata__")


def _checked(shape: Shape, counted: int, name: str) -> Shape:
    """The shape, if the weights that are stored agree with it to 2 %.

    Raises:
        UnavailableError: the model has parts that the planner does not know.
    """
    # a tied head may be stored all the same
    untied = shape.parameters + (shape.embedding if shape.tied else 0)
    if counted and not any(abs(counted - wanted) <= 0.02 * wanted for wanted in (shape.parameters, untied)):
        raise UnavailableError(
            f"{name} has {counted:,} weights, its config.json describes {shape.parameters:,}",
            "the model has parts that the planner does not know; training itself does not need the plan",
        )
    return shape
