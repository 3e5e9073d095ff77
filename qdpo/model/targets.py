"""Which linear layers of a model get an adapter, and what is left without one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from qdpo.config.schema import ALL_LINEAR, ROUTERS, is_target
from qdpo.errors import ConfigError

EXPERTS = "experts"
NUMBER = re.compile(r"\.\d+(?=\.|$)")


def targets_of(model: Any, wanted: Sequence[str] | str) -> list[str]:
    """The names of the linear layers that get an adapter.

    Args:
        model: the base.
        wanted: `lora.target_modules`.

    Raises:
        ConfigError: the model has no such layer, or it is the head.
    """
    linear, heads = _linear_names(model)
    if wanted == ALL_LINEAR:
        return sorted(name for name in linear - heads if is_target(name, wanted))
    for target in wanted:
        if target in heads:
            raise ConfigError(f"lora.target_modules names the output head {target}", "leave it out: it stays frozen")
        if target not in linear:
            close = difflib.get_close_matches(target, sorted(linear - heads), n=1, cutoff=0.75)
            guess = f"did you mean {close[0]}? " if close else ""
            stacked = [name for name in _stacked(model) if target.removesuffix("_proj") in name]
            why = (
                f"; {stacked[0]} holds all experts in one tensor, which PEFT's layers cannot follow" if stacked else ""
            )
            raise ConfigError(
                f"lora.target_modules: the model has no linear layer {target}{why}",
                f"{guess}it has {', '.join(sorted(linear - heads))}; {ALL_LINEAR} takes them all: "
                f"--set lora.target_modules={ALL_LINEAR}",
            )
    return list(wanted)


def _linear_names(model: Any) -> tuple[set[str], set[str]]:
    """The last names of all linear layers, and of the head."""
    head = model.get_output_embeddings()
    names = [(name.rsplit(".", 1)[-1], module is head) for name, module in linear_layers(model)]
    return {name for name, _ in names}, {name for name, is_head in names if is_head}


def linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers by name, also those that an adapter is around."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".lora_" not in name:
            yield stripped(name), module


def _stacked(model: nn.Module) -> list[str]:
    """The names of weights that hold those of several layers."""
    return [name for name, weight in model.named_parameters() if weight.ndim == 3 and "conv" not in name]


def check_left_out(policy: Any, allowed: Collection[str] = ()) -> dict[str, int]:
    """Refuse to leave a whole kind of layer without an adapter unnoticed.

    Layers that take turns (attention and linear attention) do one work: where one kind of them gets an adapter and
    another gets none, half of the model stays as it is. Experts are most of a model that has some. What is left out in
    every layer alike (an adapter of attention alone) is as it was asked for.

    Args:
        policy: the base with its adapter.
        allowed: kinds that may stay without (`lora.leave_out`).

    Returns:
        The weights without an adapter, by kind, such as `mlp.down_proj`; routers are not counted.

    Raises:
        ConfigError: a kind is left out; says which, and what would take it in.
    """
    from peft.tuners.lora import LoraLayer

    adapted = {stripped(name) for name, module in policy.named_modules() if isinstance(module, LoraLayer)}
    bare: dict[str, int] = {}
    kinds: dict[str, _Kind] = {}
    for name, weights in _weights(policy):
        owner, _, last = name.rpartition(".")
        kind = NUMBER.sub("", owner).rpartition(".")[2]
        has = name in adapted or owner in adapted
        if last not in ROUTERS:
            kinds.setdefault(kind, _Kind()).add(int(NUMBER.findall(name)[0][1:]), last, has)
            if not has:
                bare[f"{kind}.{last}"] = bare.get(f"{kind}.{last}", 0) + weights
    count = len(set().union(*(kind.layers for kind in kinds.values()))) if kinds else 0
    for name, part in kinds.items():
        if name in allowed or part.adapted or (len(part.layers) == count and name != EXPERTS):
            continue
        taken = "" if name == EXPERTS else f"--set lora.target_modules={ALL_LINEAR} takes them in; "
        raise ConfigError(
            f"lora.target_modules: {len(part.layers)} of {count} layers get no adapter on their {name} "
            f"({', '.join(sorted(part.names))}): a part of the model would not be trained",
            f"{taken}--set lora.leave_out=[{name}] leaves them as they are",
        )
    return bare


@dataclass
class _Kind:
    """Layers by which part of the model they belong to: the numbers of those that have it, names, any adapter."""

    layers: set[int] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    adapted: bool = False

    def add(self, layer: int, name: str, adapted: bool) -> None:
        self.layers.add(layer)
        self.names.add(name)
        self.adapted |= adapted


def _weights(policy: Any) -> Iterator[tuple[str, int]]:
    """What an adapter could be attached to, inside of numbered layers: linear layers, and experts in one tensor."""
    head = policy.get_output_embeddings()
    for name, module in linear_layers(policy):
        if module is not head and NUMBER.search(name):
            yield name, module.in_features * module.out_features
    for name, weight in policy.named_parameters():
        if weight.ndim == 3 and EXPERTS in name and ".lora_" not in name:
            yield stripped(name), weight.numel()


def stripped(name: str) -> str:
    """The name of a module without what PEFT puts around it."""
    return name.replace(".base_layer", "")
