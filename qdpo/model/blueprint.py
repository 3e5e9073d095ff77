"""A base in NF4 put together from tensors that are rounded already.

transformers builds the model (classes, buffers, tied weights) as it does for any checkpoint that bitsandbytes has
quantized; where the tensors come from is ours: from the shards in one pass, or from the NF4 base that is kept.

Only for models whose checkpoint names its tensors as the model does, each linear layer one tensor. Those of others are
renamed, stacked or split by transformers while it loads them: they are left to its own loader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from qdpo.config.schema import ModelSection
from qdpo.errors import InputMissingError
from qdpo.hardware import Device
from qdpo.model.coverage import check_stored
from qdpo.model.nf4 import Quantization
from qdpo.model.rounding import NESTED_BLOCKSIZE, values_of_nf4
from qdpo.model.source import Source
from qdpo.model.tensors import CODES, TensorFiles, is_rotary
from qdpo.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROUNDED_FROM = (torch.float32, torch.bfloat16, torch.float16)
PARTS = ("absmax", "nested_absmax", "nested_offset")
"""What belongs to a packed weight, behind its name: scales, and the scales and mean of those."""


class Tensors(Protocol):
    """Tensors by name, read when they are asked for."""

    def __iter__(self) -> Iterator[str]: ...
    def read(self, name: str) -> torch.Tensor: ...
    def dtype(self, name: str) -> torch.dtype: ...


@dataclass(frozen=True)
class Blueprint:
    """What a base needs to be put together.

    Attributes:
        source: its files.
        files: the tensors of its checkpoint.
        quantization: how it is rounded, and which layers.
        dtypes: of the model's tensors, in memory.
        settings: the model's configuration, for transformers.
        kind: the model's class.
    """

    source: Source
    files: TensorFiles
    quantization: Quantization
    dtypes: dict[str, torch.dtype]
    settings: Any
    kind: Any

    def assemble(self, tensors: Tensors, device: Device) -> PreTrainedModel:
        """The model on its device.

        Args:
            tensors: the checkpoint's, those of the quantized layers packed and with their `PARTS`.
            device: where it goes, tensor by tensor.
        """
        from transformers import GenerationConfig

        extra: dict[str, Any] = {}
        if (self.source.folder / "generation_config.json").is_file():
            extra["generation_config"] = GenerationConfig.from_pretrained(self.source.folder)
        names = [name for name in tensors if not name.endswith(".nested_offset")]
        with Progress("loading the base", len(names), unit="tensors") as progress:
            model: PreTrainedModel = self.kind.from_pretrained(
                None,
                config=self.settings,
                state_dict={name: self._later(tensors, name, progress) for name in names} | self._tables(tensors),
                dtype=self.quantization.load_dtype,
                device_map={"": device.torch},
                attn_implementation=self.settings._attn_implementation,
                **extra,
            )
        model.config.name_or_path = str(self.source.folder)
        return model

    def _later(self, tensors: Tensors, name: str, progress: Progress) -> _Later:
        rounded = name not in self.dtypes or name.removesuffix(".weight") in self.quantization.modules
        return _Later(tensors, name, tensors.dtype(name) if rounded else self.dtypes[name], progress)

    def _tables(self, tensors: Tensors) -> dict[str, Any]:
        """What a checkpoint of bitsandbytes has beside each packed weight: tables of values, and the rest as JSON."""
        from bitsandbytes.functional import create_dynamic_map
        from bitsandbytes.utils import pack_dict_to_tensor

        how = self.quantization
        state: dict[str, Any] = {}
        for module in how.modules:
            name = f"{module}.weight"
            about: dict[str, Any] = {
                "quant_type": "nf4",
                "blocksize": how.blocksize,
                "dtype": str(how.load_dtype).removeprefix("torch."),
                "shape": list(self.files.places[name].shape),
            }
            state[f"{name}.quant_map"] = values_of_nf4()
            if how.double_quant:
                state[f"{name}.nested_quant_map"] = create_dynamic_map()
                about |= {"nested_blocksize": NESTED_BLOCKSIZE, "nested_dtype": "float32"}
                about["nested_offset"] = float(tensors.read(f"{name}.nested_offset"))
            state[f"{name}.quant_state.bitsandbytes__nf4"] = pack_dict_to_tensor(about)
        return state


@dataclass(frozen=True)
class _Later:
    """A tensor that transformers reads when it puts it into the model, as it does those of safetensors."""

    tensors: Tensors
    name: str
    dtype: torch.dtype
    progress: Progress

    def __getitem__(self, index: Any) -> torch.Tensor:
        self.progress.advance()
        return self.tensors.read(self.name)[index].to(self.dtype)

    def get_dtype(self) -> str:
        return CODES[self.dtype]


class Held(dict[str, torch.Tensor]):
    """Tensors in memory, each given away once: the model may need a copy of another type."""

    def read(self, name: str) -> torch.Tensor:
        """One of them, which goes."""
        return self.pop(name)

    def dtype(self, name: str) -> torch.dtype:
        """Its type."""
        return self[name].dtype


def blueprint(source: Source, config: ModelSection, dtype: torch.dtype, blocksize: int) -> Blueprint | None:
    """How a base is put together; None where that is left to transformers.

    Args:
        source: the base's files.
        config: how it is loaded.
        dtype: type of its tensors before they are rounded, and of the computation.
        blocksize: weights that share a scale.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.quantizers.auto import AutoHfQuantizer

    if config.quantization != "nf4" or config.trust_remote_code:
        return None
    try:
        files = TensorFiles.of_folder(source.folder)
    except InputMissingError:
        return None  # transformers' loader says what is wrong with them
    settings = AutoConfig.from_pretrained(source.folder, attn_implementation=config.attn_implementation)
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=config.double_quant,
        bnb_4bit_compute_dtype=dtype,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, dtype=dtype)
    kind, settings = type(model), model.config
    AutoHfQuantizer.from_config(how, pre_quantized=False).preprocess_model(
        model=model, dtype=dtype, device_map={"": "cpu"}, checkpoint_files=None, use_kernels=False
    )
    check_stored(model, source.name, config.in_16_bits)
    layers = {name: module for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    if not layers or _keeps_float32(model) or not _is_one_to_one(model, files, layers):
        return None
    settings.quantization_config = how.to_dict()
    quantization = Quantization("nf4", frozenset(layers), dtype, config.double_quant, blocksize)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    return Blueprint(source, files, quantization, dtypes, settings, kind)


def _keeps_float32(model: Any) -> bool:
    """Whether some tensors stay in float32 whatever the model computes in."""
    return bool(getattr(model, "_keep_in_fp32_modules", None) or getattr(model, "_keep_in_fp32_modules_strict", None))


def _is_one_to_one(model: Any, files: TensorFiles, layers: Mapping[str, Any]) -> bool:
    """Whether each tensor of a checkpoint is one of the model's, under its name and with its shape."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names = [name for name in files if not is_rotary(name)]
    return (
        all(wanted.get(name) == files.places[name].shape for name in names)
        and wanted.keys() - set(names) <= set(model.all_tied_weights_keys)
        and all(
            change.rename_source_key(name) == (name, None)
            for change in get_model_conversion_mapping(model)
            for name in names
        )
        and all(files.places[f"{name}.weight"].dtype in ROUNDED_FROM for name in layers)
        and all(getattr(layer, "source_cls", nn.Linear) is nn.Linear for layer in layers.values())
    )
