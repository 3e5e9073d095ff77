"""A model without values, of a few layers that stand for all of them, as a run loads it: 4-bit base and adapter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from qdpo.engine.device import CARD
from qdpo.engine.recompute import decoder_layers
from qdpo.errors import UnavailableError, first_line
from qdpo.planner.parts import ADAPTER, BLOCK
from qdpo.planner.shapes import Shape
from qdpo.planner.spans import Bytes

PACKED, SCALES, UNQUANTIZED = "NF4 weights", "NF4 scales", "weights not in 4 bits"


def bare(config: dict[str, Any], name: str, attention: str, dtype: torch.dtype) -> Any:
    """A *ForCausalLM of a configuration on torch's `meta` device.

    Args:
        config: content of a config.json.
        name: the model's, for messages.
        attention: transformers' `attn_implementation`.
        dtype: of its weights.

    Raises:
        UnavailableError: transformers does not know this kind of model, or it is no decoder of layers.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        key: value
        for key, value in config.items()
        if key not in ("dtype", "torch_dtype", "auto_map", "quantization_config")
    }
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(**settings), dtype=dtype, attn_implementation=attention
            )
    except Exception as error:  # whatever a foreign configuration makes transformers say
        raise UnavailableError(
            f"transformers cannot build {name} (model_type {config.get('model_type')!r}): {first_line(error, 200)}",
            "`qdpo train --preset ... --dry-run` checks everything else",
        ) from error
    if not decoder_layers(model):
        raise UnavailableError(
            f"{name} ({type(model).__name__}) has no decoder layers that a plan could take apart",
            "`qdpo train --preset ... --dry-run` checks everything else; training itself does not need the plan",
        )
    return model


def shape_of(model: Any) -> Shape:
    """The sizes of a model on `meta`."""
    settings = model.config.get_text_config()
    embedding = model.get_input_embeddings().weight
    matrices = tuple(
        {
            path: (part.out_features, part.in_features)
            for path, part in layer.named_modules()
            if isinstance(part, nn.Linear)
        }
        for layer in decoder_layers(model)
    )
    return Shape(
        kind=settings.model_type,
        hidden=embedding.shape[1],
        vocab=embedding.shape[0],
        tied=bool(model.config.tie_word_embeddings),
        parameters=sum(weight.numel() for weight in model.parameters()),
        matrices=matrices,
    )


def shorten(model: Any) -> list[int]:
    """Leave a few layers in a model: of every kind the first two, and the last.

    The first of a kind makes what the others of its kind share (masks), the last leaves out what nobody reads.

    Returns:
        For each layer that there was the number of the one that stands for it.
    """
    layers = decoder_layers(model)
    config = model.config.get_text_config()
    kinds = [_kind(layer, config, number) for number, layer in enumerate(layers)]
    last = len(layers) - 1
    firsts = {kind: [n for n, other in enumerate(kinds) if other == kind and n != last][:2] for kind in kinds}
    left = sorted({n for numbers in firsts.values() for n in numbers} | {last})
    place = {number: new for new, number in enumerate(left)}
    stand_in = [place[n] if n in place else place[firsts[kind][-1]] for n, kind in enumerate(kinds)]
    _keep(model, layers, left, config)
    return stand_in


def _kind(layer: nn.Module, config: Any, number: int) -> tuple[Any, ...]:
    parts = tuple((name, tuple(weight.shape)) for name, weight in layer.named_parameters())
    kinds = getattr(config, "layer_types", None)
    window = tuple(getattr(module, "sliding_window", None) for module in layer.children())
    return type(layer).__name__, parts, kinds[number] if kinds else None, window


def _keep(model: Any, layers: list[Any], left: list[int], config: Any) -> None:
    for owner in list(model.modules()):
        for name, part in list(owner.named_children()):
            if isinstance(part, nn.ModuleList) and len(part) == len(layers) and part[0] is layers[0]:
                setattr(owner, name, nn.ModuleList([layers[number] for number in left]))
    for new, number in enumerate(left):
        for module in layers[number].modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = new
    for holder in {id(h): h for h in (config, *(getattr(m, "config", None) for m in model.modules())) if h}.values():
        if getattr(holder, "layer_types", None) and len(holder.layer_types) == len(layers):
            holder.layer_types = [holder.layer_types[number] for number in left]
        if getattr(holder, "num_hidden_layers", None) == len(layers):
            holder.num_hidden_layers = len(left)


def quantizable(model: Any, double_quant: bool, dtype: torch.dtype) -> None:
    """Put bitsandbytes' layers in the place of the linear ones of a model on `meta`."""
    from bitsandbytes import functional
    from bitsandbytes.nn import Linear4bit

    from qdpo.model.load import keep_weights_unpacked

    # bitsandbytes keeps this table for the whole process: it must not be made of tensors without values
    if "dynamic" not in functional.name2qmap:
        functional.name2qmap["dynamic"] = functional.create_dynamic_map()

    for layer in decoder_layers(model):
        for path, part in list(layer.named_modules()):
            if isinstance(part, nn.Linear):
                sizes = part.in_features, part.out_features, part.bias is not None
                layer.set_submodule(path, Linear4bit(*sizes, dtype, double_quant, "nf4", device="meta"))
    keep_weights_unpacked(model)
    model.is_loaded_in_4bit = True


def fill(policy: nn.Module, dtype: torch.dtype) -> None:
    """Replace weights on `meta` by ones without values on `CARD`, the linear ones in 4 bits where they are to be.

    Call it inside of a FakeTensorMode. What is real stays so.
    """
    from bitsandbytes.nn import Linear4bit

    # a tied head is the same parameter
    made: dict[int, nn.Parameter] = {}
    for module in policy.modules():
        for name, weight in list(module._parameters.items()):
            if weight is None or not weight.is_meta:
                continue
            if id(weight) not in made:
                four_bits = isinstance(module, Linear4bit) and name == "weight"
                made[id(weight)] = _packed(module, dtype) if four_bits else _empty(weight)
            module._parameters[name] = made[id(weight)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.device != CARD:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CARD)


def _empty(weight: nn.Parameter) -> nn.Parameter:
    value = torch.empty(weight.shape, dtype=weight.dtype, device=CARD)
    return nn.Parameter(value, requires_grad=weight.requires_grad)


def _packed(module: Any, dtype: torch.dtype) -> nn.Parameter:
    from bitsandbytes.functional import quantize_4bit

    double = module.weight.compress_statistics
    weight = torch.empty(module.weight.shape, dtype=dtype, device=CARD)
    data, state = quantize_4bit(weight, blocksize=BLOCK, compress_statistics=double, quant_type="nf4")
    # a Params4bit cannot be made of a tensor that is a subclass already
    packed: Any = nn.Parameter(data, requires_grad=False)
    packed.quant_state = module.quant_state = state
    packed.bnb_quantized, packed.module = True, module
    packed.compress_statistics, packed.quant_type = double, "nf4"
    packed.blocksize, packed.quant_storage = BLOCK, torch.uint8
    return packed


def norms(model: nn.Module) -> Iterator[nn.Module]:
    """Modules that have one vector of weights and nothing else: their behaviour is looked at before they are fused."""
    for module in model.modules():
        own = [weight for weight in module._parameters.values() if weight is not None]
        if len(own) == 1 and own[0].ndim == 1 and not list(module.children()):
            yield module


def with_values(model: nn.Module) -> list[nn.Module]:
    """Give the norms of a model on `meta` real weights; returns them."""
    found = list(norms(model))
    for module in found:
        for name, weight in module._parameters.items():
            if weight is not None:
                real = torch.linspace(0.5, 1.5, weight.numel()).to(weight.dtype)
                module._parameters[name] = nn.Parameter(real, requires_grad=False)
    return found


def without_values(modules: list[nn.Module]) -> None:
    """Take them back."""
    for module in modules:
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(weight.to("meta"), requires_grad=False)


def held(module: nn.Module, seen: set[int]) -> Bytes:
    """Bytes of a module's weights by what they are; memory that was seen counts once.

    Args:
        module: with its adapter.
        seen: addresses of what was counted, which is added to.
    """
    found: Bytes = {}

    def add(kind: str, tensor: Any) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            found[kind] = found.get(kind, 0) + storage.nbytes()

    for weight in [*module.parameters(), *module.buffers()]:
        state = getattr(weight, "quant_state", None)
        if weight.requires_grad:
            add(ADAPTER, weight)
        else:
            add(PACKED if state is not None else UNQUANTIZED, weight)
        while state is not None:
            for name in ("absmax", "code", "offset"):
                if hasattr(value := getattr(state, name, None), "untyped_storage"):
                    add(SCALES, value)
            state = getattr(state, "state2", None)
    return found
