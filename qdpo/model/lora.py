"""Attaching the adapter: explicit target names, fp32 weights, the base untouched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qdpo.config.schema import LoraSection
from qdpo.errors import ConfigError, first_line
from qdpo.model.targets import check_left_out, targets_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def attach(model: PreTrainedModel, config: LoraSection, seed: int, adapter: str | None = None) -> PeftModel:
    """Wrap a frozen base with a new LoRA adapter, or with one to continue from.

    Adapter weights are fp32 whatever the base computes in: at DPO's learning rates bf16 loses most of lora_A's updates,
    and fp16 gradients cannot be unscaled.

    Args:
        model: the base.
        config: the `lora` section.
        seed: seed of the initialisation.
        adapter: folder of an adapter to continue from.

    Raises:
        ConfigError: a target is not in the model, or is the head; a whole kind of layer would be left out; the adapter
            does not fit.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    if adapter is not None:
        try:
            wrapped = PeftModel.from_pretrained(model, adapter, is_trainable=True, autocast_adapter_dtype=True)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise ConfigError(f"the adapter {adapter} does not fit this base: {str(error).splitlines()[0]}") from error
        check_placed(wrapped, Path(adapter))
    else:
        targets = targets_of(model, config.target_modules)
        settings = LoraConfig(
            r=config.r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            bias=config.bias,
            task_type=config.task_type,
            use_rslora=config.use_rslora,
            target_modules=targets,
        )
        torch.manual_seed(seed)
        try:
            wrapped = get_peft_model(model, settings)
        except ValueError as error:  # experts that are one tensor get an adapter without dropout, or none
            raise ConfigError(
                f"PEFT cannot attach the adapter: {first_line(error)}", "try --set lora.lora_dropout=0"
            ) from error
        check_left_out(wrapped, config.leave_out)
    for parameter in trainable(wrapped).values():
        parameter.data = parameter.data.float()
    return wrapped


def check_placed(policy: PeftModel, adapter: Path) -> None:
    """Every tensor of an adapter's file has its place in the model, and every place its tensor.

    PEFT loads what fits and passes over the rest: an adapter of a deeper model would lose its upper layers in silence.

    Raises:
        ConfigError: otherwise.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    path = adapter / "adapter_model.safetensors"
    if not path.is_file():
        return
    with safe_open(path, "pt") as file:
        stored = {key for key in file.keys() if ".lora_" in key}  # noqa: SIM118 - the file is no dict
    placed = {key for key in get_peft_model_state_dict(policy, save_embedding_layers=False) if ".lora_" in key}
    for what, odd in (("has no place for", stored - placed), ("finds no value for", placed - stored)):
        if odd:
            count = f"{len(odd):,} of {len(stored | placed):,}"
            raise ConfigError(
                f"the adapter {adapter} does not fit this base: the model {what} {count} tensors (first: {min(odd)})",
                "use the base that the adapter was trained on",
            )


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """The layers that carry an adapter, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to 0; the adapter's configuration keeps its value."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
