"""Seeing what passes over tensors without values hold, compute and move.

The tensors are torch's fake ones: they have shapes and types. Those of the host are real and computed with. What the
host reads from the card is made up: a copy is full of ones, a single number is 1, 0.0 or True.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from qdpo.planner.spans import Bytes, Span

ROUND = 512
"""Bytes to which torch's allocator rounds on a card."""

DEVICE = torch.ops.prim.device.default

PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm"}

FUSED_ROWS = 4
"""Rows up to which bitsandbytes reads 4-bit weights as they are stored, on every card (`_GEMM_4BIT_CUSTOM_FLOOR_M` in
its backends/cuda/ops.py)."""

ACTIVATIONS, DEQUANTIZED, HEAD = "activations", "dequantized weights", "log-probabilities"


class Watch(TorchDispatchMode):
    """Sees every operation; entered inside of a FakeTensorMode.

    Args:
        round_to: bytes to which an allocation is rounded.
    """

    def __init__(self, round_to: int = ROUND) -> None:
        super().__init__()
        self.round_to = round_to
        self.spans: list[Span] = []
        self.kind = ACTIVATIONS
        """Of the tensors that are made from now on."""
        self._alive: dict[int, tuple[int, str]] = {}
        self._level: Bytes = {}
        self._sum = 0
        self._begin("", -1)

    # ------------------------------------------------------------------------------------------------------------ spans

    def _begin(self, phase: str, layer: int) -> None:
        self._phase, self._layer = phase, layer
        self._start, self._highest, self._at_peak = dict(self._level), self._sum, dict(self._level)
        self._flops = self._moved = 0.0

    def border(self, phase: str, layer: int = -1, kind: str = ACTIVATIONS) -> None:
        """End a span and begin the next."""
        left, peak = _more(self._level, self._start), _more(self._at_peak, self._start)
        self.spans.append(Span(self._phase, self._layer, left, peak, self._flops, self._moved))
        self.kind = kind
        self._begin(phase, layer)

    def take(self) -> list[Span]:
        """The spans since the last call, the one that goes on included; what was before a first border is left out."""
        self.border("")
        spans, self.spans = [span for span in self.spans if span.phase], []
        return spans

    @property
    def phase(self) -> str:
        """The part of a run that is seen."""
        return self._phase

    def call(self, tensor: Tensor, kind: str) -> None:
        """Say what kind a tensor is that is there already."""
        key = tensor.untyped_storage()._cdata
        if key in self._alive:
            size, before = self._alive[key]
            self._alive[key] = size, kind
            self._level[before] -= size
            self._level[kind] = self._level.get(kind, 0) + size

    # ------------------------------------------------------------------------------------------------------- operations

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and torch's guard against it takes longer than all the rest."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is DEVICE and isinstance(args[0], FakeTensor):
            # autograd asks with every operation
            return args[0].fake_device
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        inputs = _tensors(args) + _tensors(kwargs.values())
        target = kwargs.get("device")
        if name == "_pin_memory":
            return args[0]
        if not any(isinstance(tensor, FakeTensor) for tensor in inputs) and not (target and is_card(target)):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if name == "_local_scalar_dense":
            kind = inputs[0].dtype
            return True if kind == torch.bool else 0.0 if kind.is_floating_point else 1
        if (copied := _to_host(name, args, kwargs)) is not None:
            return copied
        result = func(*args, **kwargs)
        outputs = _tensors(result if isinstance(result, tuple | list) else (result,))
        self._count(name, inputs, outputs, args)
        if name == "gemm_4bit":
            # its result is made while the dequantized weight is there
            self._of_4_bits(inputs[0], outputs[0])
        return result

    def _count(self, name: str, inputs: list[Tensor], outputs: list[Tensor], args: Any) -> None:
        fresh = False
        for tensor in outputs:
            fresh = self._hold(name, tensor) or fresh
        if name.startswith(("empty", "new_empty")) or not (fresh or name.endswith("_")):
            return
        if name in PRODUCTS:
            left, right = inputs[-2:] if "add" in name else inputs[:2]
            self._flops += 2.0 * left.numel() * right.shape[-1]
        elif "attention" in name or "attn" in name:
            self._flops += _attended(name, inputs, args)
        else:
            self._moved += sum(tensor.numel() * tensor.element_size() for tensor in inputs + outputs)

    def _of_4_bits(self, rows: Tensor, outputs: Tensor) -> None:
        """bitsandbytes' product with a 4-bit weight, which it dequantizes where there are more than a few rows.

        Above, its rule depends on the card, and a plan counts weights as dequantized.
        """
        weights = rows.shape[-1] * outputs.shape[-1]
        self._flops += 2.0 * weights * (rows.numel() // rows.shape[-1])
        if rows.numel() // rows.shape[-1] <= FUSED_ROWS:
            return
        size = weights * outputs.element_size()
        self._moved += 2 * size
        if self._sum + size > self._highest:
            self._highest, self._at_peak = self._sum + size, {**self._level}
            self._at_peak[DEQUANTIZED] = self._at_peak.get(DEQUANTIZED, 0) + size

    def _hold(self, name: str, tensor: Tensor) -> bool:
        """Count a tensor's memory; whether it is new."""
        if not isinstance(tensor, FakeTensor):
            return False
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return False
        size = -(-storage.nbytes() // self.round_to) * self.round_to
        kind = DEQUANTIZED if name.startswith("dequantize") else self.kind
        self._alive[key] = size, kind
        self._level[kind] = self._level.get(kind, 0) + size
        self._sum += size
        weakref.finalize(storage, self._drop, key)
        if self._sum > self._highest:
            self._highest, self._at_peak = self._sum, dict(self._level)
        return True

    def _drop(self, key: int) -> None:
        if (found := self._alive.pop(key, None)) is not None:
            size, kind = found
            self._level[kind] -= size
            self._sum -= size


class Constants(TorchFunctionMode):
    """Lets `torch.tensor` put its numbers on the card too: to torch, both are on the CPU already."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and is_card(device := kwargs.get("device") or "cpu"):
            with unset_fake_temporarily():
                real = func(*args, **{**kwargs, "device": "cpu"})
            return torch.empty(real.shape, dtype=real.dtype, device=device)
        return func(*args, **kwargs)


def is_card(device: Any) -> bool:
    """Whether a device is that of the tensors without values."""
    return torch.device(device).index is not None


def _tensors(values: Any) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += _tensors(value)
    return found


def _to_host(name: str, args: Any, kwargs: Any) -> Tensor | None:
    """A copy from the card to the host; None for anything else."""
    if name == "_to_copy":
        source, target, dtype = args[0], kwargs.get("device"), kwargs.get("dtype") or args[0].dtype
        if target is None or is_card(target) or not is_card(source.device):
            return None
        with unset_fake_temporarily():
            return torch.ones(source.shape, dtype=dtype)
    if name == "copy_" and not is_card(args[0].device) and is_card(args[1].device):
        with unset_fake_temporarily():
            return args[0].fill_(1)
    return None


def _attended(name: str, inputs: list[Tensor], args: Any) -> float:
    """Operations of attention, as if every query saw all keys of its batch; of packed segments half of the longest."""
    times = 4.0 * (2.5 if "backward" in name else 1.0)
    query, key = inputs[1:3] if "backward" in name else inputs[:2]
    if query.ndim == 4:
        return times * query.numel() * key.shape[-2]
    longest = max((value for value in args if type(value) is int), default=key.shape[0])
    return times * query.numel() * longest / 2


def _more(now: Bytes, before: Bytes) -> Bytes:
    """The difference by kind, without zeros."""
    kinds = dict.fromkeys((*now, *before))
    return {kind: more for kind in kinds if (more := now.get(kind, 0) - before.get(kind, 0))}
