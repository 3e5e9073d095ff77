"""What a GGUF file says about itself: `general.*` keys. Nothing of this machine is among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import GGUFWriter, Metadata

from qdpo.export.source import TrainedRun
from qdpo.files import read_json

General = dict[str, tuple[Any, ...]]
"""Entries by the name of the writer's method without `add_`, with its arguments."""

SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
"""What llama.cpp samples with by default when a file says it, and its name in generation_config.json."""


def write_general(writer: GGUFWriter, general: General) -> None:
    """Write the entries."""
    for name, arguments in general.items():
        getattr(writer, f"add_{name}")(*arguments)


def base_model(run: TrainedRun) -> General:
    """What the model was made from, as llama.cpp's converter writes it."""
    name, organization, _, _, version, _ = Metadata.get_model_id_components(run.public_base)
    found: General = {"base_model_count": (1,), "base_model_name": (0, Metadata.id_to_title(name))}
    if version is not None:
        found["base_model_version"] = (0, version)
    if organization is not None and run.base_on_hub:
        found["base_model_organization"] = (0, Metadata.id_to_title(organization))
        found["base_model_repo_url"] = (0, f"https://huggingface.co/{organization}/{name}")
    return found


def sampling(folder: Path) -> General:
    """How a model asks to be sampled, from its generation_config.json."""
    path = folder / "generation_config.json"
    settings = read_json(path) if path.is_file() else {}
    values = {name: settings.get(key) for name, key in SAMPLING.items()}
    return {f"sampling_{name}": (value,) for name, value in values.items() if isinstance(value, int | float)}
