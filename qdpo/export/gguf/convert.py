"""The merged model as GGUF files, one tensor in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter

from qdpo.errors import InputMissingError
from qdpo.export.gguf.families import Family, family_of, to_gguf
from qdpo.export.gguf.general import General, write_general
from qdpo.export.gguf.kinds import PLAIN, Kind, Traits, stored_bytes, tensor_type
from qdpo.export.gguf.rounding import Rounding
from qdpo.export.gguf.settings import frequency_factors, write_settings
from qdpo.export.gguf.vocabulary import Vocabulary
from qdpo.model.merged import EMBEDDING, HEAD, MergedModel

FACTORS = "rope_freqs.weight"
METADATA_BYTES = 16 << 20
"""Room for the vocabulary and other keys when the disk is checked."""


@dataclass(frozen=True)
class Mapped:
    """A tensor of the model under both of its names."""

    name: str
    gguf_name: str
    shape: tuple[int, ...]


def mapped_tensors(family: Family, model: MergedModel) -> list[Mapped]:
    """The tensors of a model with their GGUF names, in the order in which they are written.

    Raises:
        InputMissingError: a tensor has no place in the architecture.
    """
    return mapped(family, model.config, {name: model.shape(name) for name in model.names})


def mapped(family: Family, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[Mapped]:
    """`mapped_tensors` of a model that is known by its config and the shapes of its tensors."""
    names = gguf.get_tensor_name_map(family.arch, config["num_hidden_layers"])
    found = []
    for name, shape in shapes.items():
        if name == HEAD and family.needs_tied_head:
            continue
        if (gguf_name := names.get_name(name, try_suffixes=(".weight", ".bias"))) is None:
            raise InputMissingError(f"{name} has no place in llama.cpp's {family.name}", "export safetensors instead")
        found.append(Mapped(name, gguf_name, shape))
    return found


def types_of(
    kind: Kind, tensors: Sequence[Mapped], config: Mapping[str, Any], importance: bool = False
) -> dict[str, Type]:
    """The GGUF type of each tensor (by its transformers name) in a file of a kind.

    Args:
        kind: of the file.
        tensors: all that are written.
        config: the model's.
        importance: whether there is an importance matrix.
    """
    heads = config["num_attention_heads"]
    traits = Traits(
        config["num_hidden_layers"],
        shared_head=HEAD not in {tensor.name for tensor in tensors},
        sharing=heads // (config.get("num_key_value_heads") or heads),
        importance=importance,
    )
    return {t.name: tensor_type(kind, t.gguf_name, t.shape, traits) for t in tensors}


def tensor_bytes(kind: Kind, model: MergedModel, importance: bool = False) -> int:
    """Bytes of all tensors of a file, with the padding between them; `importance` as `types_of` takes it."""
    tensors = mapped_tensors(family_of(model.config), model)
    types = types_of(kind, tensors, model.config, importance)
    total = 0
    for tensor in tensors:
        stored = stored_bytes(types[tensor.name], math.prod(tensor.shape))
        total += stored + -stored % gguf.GGUF_DEFAULT_ALIGNMENT
    return total


class GgufFile:
    """One GGUF file while it is written.

    Args:
        path: the file.
        kind: its type.
        model: what is converted.
        vocabulary: its tokenizer.
        general: further `general.*` entries, see `general_of`.
        rounding: how tensors are rounded.
    """

    def __init__(
        self,
        path: Path,
        kind: Kind,
        model: MergedModel,
        vocabulary: Vocabulary,
        general: General,
        rounding: Rounding,
    ) -> None:
        self.path, self.kind, self._rounding = path, kind, rounding.of_file(kind)
        self._family, self._config = family_of(model.config), model.config
        self._tensors = mapped_tensors(self._family, model)
        self._types = types_of(kind, self._tensors, model.config, self._rounding.has_importance)
        self._factors = frequency_factors(model.config)
        self._writer = GGUFWriter(path, self._family.name)
        self._writer.add_type(gguf.GGUFType.MODEL)
        write_general(self._writer, general)
        self._writer.add_size_label(gguf.size_label(sum(math.prod(t.shape) for t in self._tensors), 0, 0, 0))
        write_settings(self._writer, self._family, model.config, kind, model.shape(EMBEDDING)[0])
        if kind.type not in PLAIN:
            for key, value in self._rounding.keys().items():
                self._writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
        vocabulary.write(self._writer)

    def keys(self) -> dict[str, Any]:
        """All metadata that the file has, by key."""
        values = {key: entry.value for shard in self._writer.kv_data for key, entry in shard.items()}
        return {key: value for key, value in values.items() if key != "general.alignment"}

    def begin(self) -> None:
        """Write everything that comes before the tensors."""
        writer = self._writer
        if self._factors is not None:
            writer.add_tensor_info(FACTORS, self._factors.shape, self._factors.dtype, self._factors.nbytes)
        for tensor in self._tensors:
            kind = self._types[tensor.name]
            if kind in (Type.F32, Type.F16):
                dtype = np.dtype(np.float32 if kind is Type.F32 else np.float16)
                writer.add_tensor_info(tensor.gguf_name, tensor.shape, dtype, math.prod(tensor.shape) * dtype.itemsize)
            else:
                shape = gguf.quant_shape_to_byte_shape(tensor.shape, kind)
                writer.add_tensor_info(tensor.gguf_name, shape, np.dtype(np.uint8), math.prod(shape), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if self._factors is not None:
            writer.write_tensor_data(self._factors)

    def add(self, tensor: Mapped, values: Any) -> None:
        """Encode and write one tensor; tensors come in the order of `mapped_tensors`."""
        values = to_gguf(self._family, self._config, tensor.name, values)
        self._writer.write_tensor_data(
            self._rounding.encode(tensor.name, tensor.gguf_name, values, self._types[tensor.name])
        )

    def finish(self) -> None:
        """Close the file."""
        self._writer.close()
