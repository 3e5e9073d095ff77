"""Finding what can be fused by structure, checking by behaviour that it may be, and switching it on and off.

No architecture is named here. A module is replaced when it has the parts that the fused function needs, and when on
random input both give the same output and the same gradients; otherwise it stays as it is.
"""

from __future__ import annotations

import contextlib
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qdpo.config.schema import PackingSection
from qdpo.engine.casts import Casts
from qdpo.engine.frozen import Frozen, is_frozen_linear
from qdpo.engine.fused_linear import FusedLora
from qdpo.engine.fused_mlp import ACTIVATIONS, FusedMlp, activate
from qdpo.engine.fused_norm import FusedRmsNorm
from qdpo.engine.recompute import decoder_layers
from qdpo.engine.scored_rows import last_mlp, on_scored_rows, tell_scored_rows

ROWS = 3
"""Rows of random input that a module and its fused form must agree on."""

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference relative to the largest value."""


@dataclass
class Fusion:
    """What was fused.

    Attributes:
        counts: modules by kind: `lora`, `mlp`, `norm`.
        left: modules of these kinds that behaved differently and were left alone, by kind.
        modules: the replaced modules.
        calls: how often they ran so far, by kind: as one function (`lora`, `mlp`), or as they were before
            (`lora plain`, `mlp plain`), which happens where types or dropout do not allow the function.
        casts: the adapter's weights in the type of the computation.
        skips_unscored: whether the last layer's MLP leaves out the rows that predict nothing.
        compare: whether what differs in behaviour is left alone.
    """

    counts: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    modules: list[nn.Module] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    casts: Casts = field(default_factory=Casts)
    skips_unscored: bool = False
    compare: bool = True
    _hooks: list[RemovableHandle] = field(default_factory=list)

    def undo(self) -> None:
        """Give every module its own forward back."""
        while self._hooks:
            self._hooks.pop().remove()
        for module in self.modules:
            module.__dict__.pop("forward", None)
        self.modules.clear()

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Every module's own forward for a while."""
        forwards = [(module, module.__dict__.pop("forward")) for module in self.modules]
        try:
            yield
        finally:
            for module, forward in forwards:
                module.forward = forward

    def describe(self) -> str:
        """In words, e.g. `56 LoRA linears, 8 gated MLPs fused, the last MLP on scored rows only`."""
        names = {"lora": "LoRA linears", "mlp": "gated MLPs", "norm": "RMSNorms"}
        parts = [f"{self.counts[kind]} {name}" for kind, name in names.items() if self.counts[kind]]
        kept = [f"{self.left[kind]} {name} left alone" for kind, name in names.items() if self.left[kind]]
        skipped = ["the last MLP on scored rows only"] if self.skips_unscored else []
        return ", ".join([(", ".join(parts) or "nothing") + " fused", *kept, *skipped])


def fuse(
    model: nn.Module,
    *,
    linear: bool = True,
    mlp: bool = True,
    norm: bool = True,
    skip_unscored: bool = True,
    compare: bool = True,
) -> Fusion:
    """Let a model's adapted layers, gated MLPs and norms run as single autograd functions.

    Args:
        model: a frozen base with LoRA adapters attached.
        linear: fuse frozen linear layers with their adapter.
        mlp: fuse gated MLPs whose three layers are adapted.
        norm: fuse RMSNorms.
        skip_unscored: run the last layer's MLP, where it is fused, on the rows that predict a completion token only.
        compare: check every module's behaviour; a plan, whose linear layers have no values, goes by structure.
    """
    fusion = Fusion(compare=compare)
    last = last_mlp(model)
    unused = _mlps_before_a_residual(model)
    for module in model.modules():
        if linear and _is_lora(module):
            _try(fusion, "lora", module, partial(_lora_forward, fusion))
        elif mlp and _is_gated_mlp(module):
            _try(fusion, "mlp", module, partial(_mlp_forward, fusion, output_unused=id(module) in unused))
        elif norm and _is_rms_norm(module):
            _try(fusion, "norm", module, _norm_forward)
    if skip_unscored and last is not None and any(module is last for module in fusion.modules):
        last.forward = types.MethodType(on_scored_rows(last.forward.__func__), last)  # type: ignore[attr-defined]
        fusion._hooks.append(tell_scored_rows(model))
        fusion.skips_unscored = True
    for module in fusion.modules:
        fusion.casts.add([parameter for parameter in module.parameters() if parameter.requires_grad])
    if fusion.casts.weights:
        fusion._hooks.append(_cast_before_each_pass(model, fusion.casts))
    fusion.calls.clear()
    return fusion


def fuse_as_configured(model: nn.Module, packing: PackingSection, *, compare: bool = True) -> Fusion:
    """`fuse` what a configuration asks for."""
    return fuse(
        model,
        linear=packing.fused_lora,
        mlp=packing.fused_mlp,
        norm=packing.fused_norm,
        skip_unscored=packing.skip_unscored,
        compare=compare,
    )


def _cast_before_each_pass(model: Any, casts: Casts) -> RemovableHandle:
    """Before the backbone runs, the adapters are cast, all at once."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    device = casts.weights[0].device.type
    return inner.base_model.register_forward_pre_hook(lambda *args: casts.refresh(device))


def _try(fusion: Fusion, kind: str, module: nn.Module, make: Callable[[Any], Callable[..., Tensor] | None]) -> None:
    forward = make(module)
    if forward is None or (fusion.compare and not _same(module, forward)):
        fusion.left[kind] += 1
        return
    module.forward = types.MethodType(forward, module)
    fusion.counts[kind] += 1
    fusion.modules.append(module)


# ---------------------------------------------------------------------------------------------------------- structure


def _is_lora(module: Any) -> bool:
    from peft.tuners.lora import LoraLayer

    return isinstance(module, LoraLayer) and is_frozen_linear(module.get_base_layer())


def _active(layer: Any) -> str | None:
    """The adapter that a LoRA layer applies, None where it applies none, several, or one in a special way."""
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    name = layer.active_adapters[0]
    if name not in layer.lora_A or name in layer.lora_variant or layer.lora_B[name].bias is not None:
        return None
    dropout = layer.lora_dropout[name]
    if layer.training and getattr(dropout, "p", 0.0) > 0:
        return None
    return name


def _dtype_for(x: Tensor, *weights: Tensor) -> torch.dtype | None:
    """The type that PEFT would compute in, None where it mixes types."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype if all(weight.dtype == x.dtype for weight in weights) else None


def _compute_type_fits(module: Any, dtype: torch.dtype) -> bool:
    return getattr(module, "compute_dtype", None) in (None, dtype)


def _is_gated_mlp(module: Any) -> bool:
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    return (
        all(part is not None and _is_lora(part) for part in parts)
        and len(list(module.children())) == 4
        and _activation(module) is not None
    )


def _activation(module: Any) -> str | None:
    """Which of `ACTIVATIONS` the module's act_fn is, by what it does."""
    act = getattr(module, "act_fn", None)
    if act is None or any(True for _ in act.parameters()):
        return None
    x = torch.linspace(-4, 4, 33)
    return next((kind for kind in ACTIVATIONS if torch.allclose(act(x), activate(kind, x), atol=1e-6)), None)


def _is_rms_norm(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__.endswith("RMSNorm")
        and isinstance(weight, nn.Parameter)
        and weight.ndim == 1
        and not weight.requires_grad
        and len(list(module.parameters())) == 1
        and _eps(module) is not None
    )


def _eps(module: Any) -> float | None:
    return next((getattr(module, name) for name in ("variance_epsilon", "eps") if hasattr(module, name)), None)


def _mlps_before_a_residual(model: nn.Module) -> set[int]:
    """MLPs whose output goes into the residual sum and nowhere else (no norm or scaling behind them).

    By structure: the layer's only norms are the two before attention and before the MLP, so nothing that follows the
    MLP keeps its output for the backward pass. `tests/engine/test_fuse.py` poisons the output to prove it.
    """
    found = set()
    for layer in decoder_layers(model):
        names = {name for name, _ in layer.named_children()}
        if names == {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"} and not hasattr(
            layer, "residual_multiplier"
        ):
            found.add(id(layer.mlp))
    return found


# ----------------------------------------------------------------------------------------------------- fused forwards


def _lora_forward(fusion: Fusion, module: Any) -> Callable[..., Tensor]:
    frozen = Frozen(module.get_base_layer())
    plain = type(module).forward

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # the reference takes the same path through a 4-bit weight as the policy, so that both round alike; on a grid
        # the weight is whole for either
        whole = self.disable_adapters or frozen.on_grid is not None
        if whole and not self.merged and not torch.is_grad_enabled():
            dtype = _dtype_for(x)
            if dtype is not None and _compute_type_fits(frozen.module, dtype):
                return frozen(x.to(dtype))
        name = _active(self)
        if name is not None and not args and not kwargs:
            a, b = self.lora_A[name].weight, self.lora_B[name].weight
            dtype = _dtype_for(x, a, b)
            if dtype is not None and _compute_type_fits(frozen.module, dtype):
                fusion.calls["lora"] += 1
                return FusedLora.apply(x, a, b, frozen, self.scaling[name], dtype, fusion.casts)
        fusion.calls["lora plain"] += 1
        return plain(self, x, *args, **kwargs)

    return forward


def _mlp_forward(fusion: Fusion, module: Any, output_unused: bool) -> Callable[..., Tensor] | None:
    kind = _activation(module)
    if kind is None:
        return None
    frozen = tuple(Frozen(layer.get_base_layer()) for layer in (module.gate_proj, module.up_proj, module.down_proj))
    plain = type(module).forward

    def forward(self: Any, x: Tensor) -> Tensor:
        layers = (self.gate_proj, self.up_proj, self.down_proj)
        names = [_active(layer) for layer in layers]
        if all(name is not None for name in names):
            weights = [
                weight
                for layer, name in zip(layers, names, strict=True)
                for weight in (layer.lora_A[name].weight, layer.lora_B[name].weight)
            ]
            dtype = _dtype_for(x, *weights)
            if dtype is not None and all(_compute_type_fits(layer.module, dtype) for layer in frozen):
                scales = tuple(layer.scaling[name] for layer, name in zip(layers, names, strict=True))
                fusion.calls["mlp"] += 1
                return FusedMlp.apply(x, frozen, scales, kind, dtype, output_unused, fusion.casts, *weights)
        fusion.calls["mlp plain"] += 1
        return plain(self, x)

    return forward


def _norm_forward(module: Any) -> Callable[..., Tensor] | None:
    eps = _eps(module)
    width, device, dtype = module.weight.shape[0], module.weight.device, module.weight.dtype
    generator = torch.Generator().manual_seed(0)
    x = (3.0 * torch.randn(ROWS, width, generator=generator)).to(device, dtype)
    expected = module(x)
    for plus_one in (False, True):
        if _close(FusedRmsNorm.apply(x, module.weight, eps, plus_one), expected, expected.dtype):
            return lambda self, x: FusedRmsNorm.apply(x, self.weight, eps, plus_one)
    return None


# ---------------------------------------------------------------------------------------------------------- behaviour


def _close(mine: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    """Whether two results agree up to the rounding of the type they were computed in, which need not be their own."""
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        return False
    mine, theirs = mine.detach(), theirs.detach()
    limit = TOLERANCE.get(dtype, 1e-4) * float(theirs.abs().max().clamp(min=1e-6))
    return bool(torch.isfinite(mine).all()) and float((mine - theirs).abs().max()) <= limit


def _same(module: Any, forward: Callable[..., Tensor]) -> bool:
    """Whether both forms of a module give one output and the same gradients, with random values in lora_B."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    reference = next(module.parameters())
    generator = torch.Generator().manual_seed(0)
    dtype = _compute_dtype(module)
    # half-precision bases are trained under autocast, with fp32 adapters
    mixed = torch.autocast(reference.device.type, dtype, enabled=dtype in (torch.bfloat16, torch.float16))
    kept = [(parameter, parameter.detach().clone()) for parameter in trained]
    x = torch.randn(ROWS, _input_width(module), generator=generator).to(reference.device, dtype).requires_grad_()
    try:
        with torch.no_grad():
            for parameter in trained:
                # lora_B starts at 0, where a wrong lora_A would go unnoticed
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
        results = []
        for run in (lambda x: type(module).forward(module, x), lambda x: forward(module, x)):
            with torch.enable_grad(), mixed:
                y = run(x)
                factors = torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape).to(y.dtype)
                total = (y * factors).sum()
            results.append([y, *torch.autograd.grad(total, [x, *trained])])
        return all(_close(mine, theirs, dtype) for theirs, mine in zip(*results, strict=True))
    finally:
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)


def _input_width(module: Any) -> int:
    if hasattr(module, "gate_proj"):
        return module.gate_proj.get_base_layer().in_features
    return module.get_base_layer().in_features if hasattr(module, "get_base_layer") else module.weight.shape[0]


def _compute_dtype(module: Any) -> torch.dtype:
    """The type that a module computes in during training."""
    if hasattr(module, "gate_proj"):
        module = module.gate_proj
    if not hasattr(module, "get_base_layer"):
        return module.weight.dtype
    base = module.get_base_layer()
    return getattr(base, "compute_dtype", None) or base.weight.dtype
