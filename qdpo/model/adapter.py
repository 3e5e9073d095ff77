"""A PEFT LoRA adapter on disk, applied to one base tensor at a time.

What is understood: LoRA and rsLoRA, rank and alpha patterns, DoRA on linear layers, `lora_bias`, trained biases,
LoRA on embeddings, and whole tensors that PEFT saved beside the adapter (`modules_to_save`, resized embeddings).
Anything else that the adapter's config turns on is refused by name, because leaving it out would change the model.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from qdpo.errors import InputMissingError
from qdpo.model.tensors import TensorFiles

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Fields that say how the adapter was made or found, but do not change what its tensors mean.
_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "corda_config", "ephemeral_gpu_offload", "eva_config"),
    *("exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core"),
    *("modules_to_save", "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config"),
    *("target_modules", "task_type"),
}
# Fields whose meaning this module implements.
_UNDERSTOOD = {
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias", "bias"),
    *("ensure_weight_tying", "init_lora_weights"),
}
# Ways to start an adapter that leave the base's weights as they are; PiSSA, OLoRA, CorDA, LoftQ and MiCA do not.
_INITS = (True, False, "gaussian", "eva", "orthogonal")

_LORA = re.compile(r"\.(lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B)$")
_MAGNITUDE = re.compile(r"\.lora_magnitude_vector(\.weight)?$")
_PREFIX = "base_model.model."


class Adapter:
    """The changes that an adapter makes to the tensors of its base.

    Args:
        folder: has `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        InputMissingError: the adapter is not there, is damaged, or uses something that cannot be merged.

    Attributes:
        config: the adapter's config, as stored.
        replaced: base tensor name -> name of the adapter tensor that stands in its place.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = _read_config(folder)
        self._files = TensorFiles([folder / ADAPTER_WEIGHTS])
        # base tensor name -> {part name, such as `lora_A.weight` -> tensor name in the adapter file}
        self._parts: dict[str, dict[str, str]] = defaultdict(dict)
        self.replaced: dict[str, str] = {}
        for key in self._files:
            self._sort_in(key)
        self._check()

    def _sort_in(self, key: str) -> None:
        name = key.removeprefix(_PREFIX)
        if match := _LORA.search(name):
            kind = ".bias" if match[1] == "lora_B.bias" else ".weight"
            self._parts[name[: match.start()] + kind][match[1]] = key
        elif match := _MAGNITUDE.search(name):
            self._parts[name[: match.start()] + ".weight"]["magnitude"] = key
        elif "lora_" in name or "trainable_tokens" in name:
            raise InputMissingError(f"{self.folder}: adapter tensor {key} is of a kind that qdpo cannot merge")
        else:
            self.replaced[name.replace(".base_layer.", ".")] = key

    def _check(self) -> None:
        config = self.config
        odd = [
            key
            for key, value in config.items()
            if value and key not in _HARMLESS and key not in _UNDERSTOOD  # falsy values turn nothing on
        ]
        if odd:
            raise InputMissingError(
                f"{self.folder / ADAPTER_CONFIG} uses {', '.join(sorted(odd))}, which qdpo cannot merge",
                "merge it with PEFT's merge_and_unload on the 16-bit base",
            )
        if config.get("init_lora_weights", True) not in _INITS:
            raise InputMissingError(
                f"{self.folder / ADAPTER_CONFIG}: init_lora_weights {config['init_lora_weights']!r} changes the base's "
                "weights, so the adapter does not belong to the base on disk",
                "convert the adapter with PEFT's path_initial_model_for_weight_conversion first",
            )
        for name, parts in self._parts.items():
            wanted = {"lora_embedding_A", "lora_embedding_B"} if "lora_embedding_A" in parts else _pair(name)
            if missing := wanted - parts.keys():
                raise InputMissingError(f"{self.folder}: {name} has no {', '.join(sorted(missing))}")
            if config.get("use_dora") and name.endswith(".weight") and "magnitude" not in parts:
                raise InputMissingError(f"{self.folder}: use_dora is set, but {name} has no lora_magnitude_vector")
            if "magnitude" in parts and "lora_embedding_A" in parts:
                raise InputMissingError(f"{self.folder}: DoRA on an embedding ({name}) cannot be merged by qdpo")

    @property
    def changed(self) -> set[str]:
        """Names of all base tensors that differ after the merge."""
        return self._parts.keys() | self.replaced.keys()

    def touches(self, name: str) -> bool:
        """Whether the adapter adds something to a tensor (rather than replacing it)."""
        return name in self._parts

    @property
    def has_deltas_only(self) -> bool:
        """Whether the adapter is plain LoRA on weights: no DoRA, biases or replaced tensors."""
        plain = {"lora_A.weight", "lora_B.weight"}
        return not self.replaced and all(parts.keys() == plain for parts in self._parts.values())

    def pairs(self) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
        """For plain LoRA: base tensor name -> A [r, in], B [out, r], scale."""
        return {name: self.pair(name) for name in self._parts}

    def pair(self, name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        """For plain LoRA: A [r, in], B [out, r] and scale of a tensor that the adapter changes."""
        a, b = (self._files.read(self._parts[name][part]) for part in ("lora_A.weight", "lora_B.weight"))
        return a, b, self._scale(name, a.shape[0])

    def directions(self, name: str) -> torch.Tensor | None:
        """A [r, in] of the LoRA on a tensor: the directions of its inputs that the adapter reads; None without one."""
        part = self._parts.get(name, {}).get("lora_A.weight")
        return None if part is None else self._files.read(part).float()

    def replaced_shape(self, name: str) -> tuple[int, ...]:
        """The shape of the tensor that the adapter has in place of the base's (a resized embedding has another one)."""
        return self._files.places[self.replaced[name]].shape

    def replacement(self, name: str) -> torch.Tensor:
        """The tensor that the adapter has in place of the base's, as stored."""
        return self._files.read(self.replaced[name])

    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The merged tensor.

        Args:
            name: the base tensor's name.
            weight: float32, what the adapter adds to (the base's tensor, or its replacement); may be changed.

        Returns:
            float32; `weight` itself where the adapter does not touch it.

        Raises:
            InputMissingError: the adapter's shapes do not fit.
        """
        parts = self._parts.get(name)
        if parts is None:
            return weight
        part = {kind: self._files.read(key).to(weight.device).float() for kind, key in parts.items()}
        if "lora_B.bias" in part:
            bias = part["lora_B.bias"]
            return weight + bias * self._scale(name, self._rank_beside_bias(name))
        if "lora_embedding_A" in part:
            a, b = part["lora_embedding_A"], part["lora_embedding_B"]
            delta = (b @ a).T * self._scale(name, a.shape[0])
        else:
            a, b = part["lora_A.weight"], part["lora_B.weight"]
            delta = (b @ a).mul_(self._scale(name, a.shape[0]))
        if delta.shape != weight.shape:
            raise InputMissingError(
                f"{name}: the adapter changes {tuple(delta.shape)}, the base has {tuple(weight.shape)}",
                "the adapter was trained on another base, or on a fused layer; give the base of run.json",
            )
        merged = weight.add_(delta)  # in place: at most two copies of a tensor are alive
        del delta
        if "magnitude" in part:
            # DoRA: the direction of each row comes from W + delta, its length from the magnitude vector
            # (https://arxiv.org/abs/2402.09353, equation 5).
            merged = (part["magnitude"] / torch.linalg.norm(merged, dim=1)).view(-1, 1) * merged
        return merged

    def _rank_beside_bias(self, name: str) -> int:
        weight = self._parts[name.removesuffix(".bias") + ".weight"]
        return self._files.places[weight["lora_A.weight"]].shape[0]

    def _scale(self, name: str, rank: int) -> float:
        """alpha / r, or alpha / sqrt(r) for rsLoRA (https://arxiv.org/abs/2312.03732), with patterns applied."""
        module = name.rsplit(".", 1)[0]
        alpha = _by_pattern(self.config.get("alpha_pattern"), module, self.config["lora_alpha"])
        expected = _by_pattern(self.config.get("rank_pattern"), module, self.config["r"])
        if rank != expected:
            raise InputMissingError(
                f"{self.folder}: {module} has rank {rank}, {ADAPTER_CONFIG} says {expected}",
                "weights and config are of different adapters",
            )
        return float(alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank)


def _pair(name: str) -> set[str]:
    return {"lora_B.bias"} if name.endswith(".bias") else {"lora_A.weight", "lora_B.weight"}


def _by_pattern(pattern: dict[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: the first key that matches the end of the module's name, from a dot on, as a regular expression."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputMissingError(f"{path} is missing", "finish the training run, or give another --run") from error
    except ValueError as error:
        raise InputMissingError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise InputMissingError(f"{path}: peft_type is {kind!r}; qdpo merges LORA adapters")
    if config.get("fan_in_fan_out"):
        raise InputMissingError(f"{path}: fan_in_fan_out (GPT-2's transposed layers) cannot be merged by qdpo")
    return config
