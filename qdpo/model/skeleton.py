"""Models without weights: their modules on the meta device, alone or with an adapter's beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from qdpo.errors import InputMissingError
from qdpo.model.adapter import ADAPTER_WEIGHTS
from qdpo.model.tensors import TensorFiles

_WRAPPED = (".base_layer.", ".original_module.")
"""What PEFT puts between the name of a module and the names of the tensors that it had before."""


def skeleton(config: dict[str, Any], dtype: torch.dtype, attention: str | None = None) -> Any:
    """A transformers model on the meta device, with its buffers in memory.

    Args:
        config: contents of config.json.
        dtype: what it computes in.
        attention: implementation of the attention; None leaves it to transformers.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    left_out = ("dtype", "torch_dtype", "transformers_version", "quantization_config")
    prepared = AutoConfig.for_model(**{key: value for key, value in config.items() if key not in left_out})
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(prepared, dtype=dtype, attn_implementation=attention)
    model.tie_weights()  # the context above has made two tensors of one
    return model


class AdapterSkeleton:
    """A skeleton with the modules of an adapter beside its own, which computes as PEFT does.

    Args:
        model: from `skeleton`; PEFT's modules are put into it.
        folder: of the adapter.

    Raises:
        InputMissingError: a tensor of the adapter has no place in the model.

    Attributes:
        model: the given one.
    """

    def __init__(self, model: Any, folder: Path) -> None:
        from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

        settings = LoraConfig.from_pretrained(str(folder))
        settings.base_model_name_or_path = None  # a skeleton has none, and PEFT would warn of that
        wrapped: Any = get_peft_model(model, settings, low_cpu_mem_usage=True)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:  # as `qdpo.model.lora.attach` has them
                parameter.data = parameter.data.float()
        self.model = model
        self._files = TensorFiles([folder / ADAPTER_WEIGHTS])
        prefix = "base_model.model."
        own = dict(wrapped.named_parameters(remove_duplicate=False))
        names = {id(value): name.removeprefix(prefix) for name, value in own.items()}
        saved = get_peft_model_state_dict(wrapped, state_dict=own, save_embedding_layers=False)
        self._keys = {names[id(value)]: key for key, value in saved.items() if key in self._files}
        literal = {name.removeprefix(prefix): name for name in self._files if name not in self._keys.values()}
        if lost := sorted(literal.keys() - names.values()):
            raise InputMissingError(
                f"{folder}: the model has no place for {len(lost)} of the adapter's tensors (first: {lost[0]})",
                "use the base that the adapter was trained on",
            )
        self._keys |= literal
        if empty := sorted(name for name in names.values() if ".lora_" in name and name not in self._keys):
            raise InputMissingError(
                f"{folder}: the adapter has no values for {len(empty)} tensors of the model (first: {empty[0]})",
                "use the base that the adapter was trained on",
            )
        shapes = {name.removeprefix(prefix): tuple(value.shape) for name, value in own.items()}
        for name, key in self._keys.items():
            if self._files.places[key].shape != shapes[name]:
                raise InputMissingError(
                    f"{folder}: {key} is {self._files.places[key].shape}, the model has {shapes[name]} there",
                    "use the base that the adapter was trained on",
                )

    def reads(self, name: str) -> bool:
        """Whether the adapter has the tensor of a name in the model's state."""
        return name in self._keys

    def read(self, name: str) -> torch.Tensor:
        """A tensor of the adapter, as stored, by its name in the model's state."""
        return self._files.read(self._keys[name])


def base_name(name: str) -> str:
    """The name that a tensor of the base had before PEFT wrapped its module."""
    for wrapped in _WRAPPED:
        name = name.replace(wrapped, ".")
    return name
