"""A base's config.json, without its weights: from the shipped presets' table, a local folder, or one small download."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdpo.errors import DataError, UnavailableError
from qdpo.model.source import EMBEDDED, find, is_local
from qdpo.planner.shapes import SHIPPED, Shape


@dataclass(frozen=True)
class Base:
    """A base as far as a plan needs it.

    Attributes:
        name: as it was given.
        config: content of its config.json.
        origin: where that comes from.
        stored: bytes of its weight files; None where only the configuration is known.
        counted: weights in them, by their headers; 0 where they are not known.
    """

    name: str
    config: dict[str, Any]
    origin: str
    stored: int | None = None
    counted: int = 0


def find_base(name: str, revision: str | None = None) -> Base:
    """A base: a hub model's revision, a local folder, or `quickstart`.

    Raises:
        UnavailableError: the hub cannot be reached.
        DataError: config.json cannot be read.
    """
    if is_local(name):
        return _local(find(name).folder, name, "embedded" if name == EMBEDDED else "local")
    if (config := SHIPPED.get(name)) is not None and revision is None:
        return Base(name, config, "known, nothing downloaded")
    return _hub(name, revision)


def _local(folder: Path, name: str, origin: str) -> Base:
    files = list(folder.glob("*.safetensors"))
    stored = sum(path.stat().st_size for path in files) if files else None
    config = _read(folder / "config.json", name)
    return Base(name, config, f"{origin} config.json", stored, sum(map(_weights_in, files)))


def _hub(name: str, revision: str | None) -> Base:
    import httpx
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        path = hf_hub_download(name, "config.json", revision=revision)
        config = _read(Path(path), name)
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
        return Base(name, config, "config.json from the hub; its weights' header could not be read")
    stored = sum(count * {"F32": 4, "F64": 8}.get(kind, 2) for kind, count in counts.items())
    return Base(name, config, "config.json and header from the hub", stored, sum(counts.values()))


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


def loaded(name: str, model: Any) -> Base:
    """A base whose model is there."""
    return Base(name, model.config.get_text_config().to_dict(), "loaded")


def check_counted(base: Base, shape: Shape) -> None:
    """Refuse a base whose stored weights do not agree with its configuration to 2 %.

    Raises:
        UnavailableError: they do not.
    """
    # a tied head may be stored all the same
    untied = shape.parameters + (shape.embedding if shape.tied else 0)
    if base.counted and not any(abs(base.counted - n) <= 0.02 * n for n in (shape.parameters, untied)):
        raise UnavailableError(
            f"{base.name} has {base.counted:,} weights, its config.json describes {shape.parameters:,}",
            "the model has parts that transformers' causal language model leaves out; training does not need the plan",
        )
