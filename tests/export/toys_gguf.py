"""Reading GGUF files back, independently of the code that wrote them where that is possible."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import torch
from export import toys

from qdpo.export.gguf.encode import decode
from qdpo.export.gguf.families import family_of, to_gguf


def make_run(folder: Path, config: Any, **lora: Any) -> Path:
    """A run on a 16-bit base of any family: folder/base and folder/run."""
    base = toys.save_base(folder / "base", config)
    targets = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"] if config.model_type == "phi3" else toys.PROJECTIONS
    peft = toys.add_adapter(toys.load_plain(base), **{"target_modules": targets, **lora})
    return toys.save_run(folder / "run", base, peft)


def fields(path: Path) -> dict[str, Any]:
    """All metadata of a file."""
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def types(path: Path) -> dict[str, str]:
    """Type of each tensor by GGUF name."""
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Dequantised values of each tensor by GGUF name."""
    return {
        t.name: decode(t.data, t.tensor_type, tuple(int(n) for n in reversed(t.shape)))
        for t in gguf.GGUFReader(path).tensors
    }


def state(path: Path, config: dict[str, Any], expected: Iterable[str]) -> dict[str, torch.Tensor]:
    """The file's weights under transformers' names, which are given."""
    family = family_of(config)
    stored = tensors(path)
    stored.pop("rope_freqs.weight", None)
    names = gguf.get_tensor_name_map(family.arch, config["num_hidden_layers"])
    known = {names.get_name(name, try_suffixes=(".weight", ".bias")): name for name in expected}
    return {known[k]: to_gguf(family, config, known[k], v, back=True) for k, v in stored.items()}
