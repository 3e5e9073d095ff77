"""What a card that does not exist would be asked to do: every operation is seen, none is computed.

Tensors on the card have shapes and types and no values; those of the host are real. A value that is read from the card
is made up: a copy is full of ones, and a single number True, 1 or 0.0. What a real card would do is counted by phase:
kernel launches, bytes moved, operations of matrix products, waits of the host, and the bytes that are alive.
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import qdpo

ROUND = 512
"""Bytes to which torch's allocator rounds."""

FOREACH_TENSORS = 48
"""Tensors that one launch of a `_foreach` kernel takes, for its commonest number of lists."""

READS = {"_local_scalar_dense", "nonzero", "equal", "_unique2", "masked_select", "bincount"}
"""Operations whose result's shape or value the host needs: it waits for all that was launched before."""

FUSED_ROWS = 4
"""Rows up to which bitsandbytes reads a 4-bit weight as it is stored, on every card."""

PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm"}

PACKAGE = str(Path(str(qdpo.__file__)).parent) + os.sep
"""Where qdpo lies."""


@dataclass
class Phase:
    """What one phase of a run asks of the card.

    Attributes:
        launches: by operation.
        moved: bytes read and written by kernels.
        flops: of matrix products.
        products: launches by types of the operands; outer products (an inner dimension of 1) do not count.
        waits: of the host, by reason and line of code.
        inside: those of them that occur within a layer's forward or backward pass.
        calls: of what was counted by hand, by name.
        peak: most bytes alive.
        start: bytes alive when it began.
        end: bytes alive when it ended.
        sites: bytes at the peak by the line of code that made them.
        times: how often the phase was entered.
    """

    launches: Counter[str] = field(default_factory=Counter)
    moved: int = 0
    flops: float = 0.0
    products: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    inside: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    peak: int = 0
    start: int = 0
    end: int = 0
    sites: Counter[str] = field(default_factory=Counter)
    times: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}


class Watch(TorchDispatchMode):
    """Sees every operation of a pretended run; entered after the FakeTensorMode.

    Args:
        sites: remember which line made which bytes.
    """

    def __init__(self, sites: bool = False) -> None:
        super().__init__()
        self.phases: dict[str, Phase] = {"rest": Phase()}
        self.names = ["rest"]
        self.alive: dict[int, int] = {}
        self.made_by: dict[int, str] = {}
        self.pinned: set[int] = set()
        self.bytes = 0
        self.keep_sites = sites
        self.highest = 0
        self.dtypes: set[str] = set()

    @property
    def phase(self) -> Phase:
        """The phase at hand."""
        return self.phases[self.names[-1]]

    @contextlib.contextmanager
    def during(self, name: str) -> Iterator[Phase]:
        """Count what happens in the block under a name."""
        phase = self.phases.setdefault(name, Phase(start=self.bytes))
        phase.times += 1
        self.names.append(name)
        self._see_level()
        try:
            yield phase
        finally:
            self.names.pop()
            phase.end = self.bytes

    # ------------------------------------------------------------------------------------------------------ operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name == "_pin_memory":
            with unset_fake_temporarily():
                copy = args[0].clone()
            self.pinned.add(copy.untyped_storage()._cdata)
            return copy
        if not any(isinstance(tensor, FakeTensor) for tensor in inputs) and not _for_card(kwargs):
            # the host computes for real
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if name in READS and any(tensor.device.type == "cuda" for tensor in inputs):
            self._wait(name)
            return self._made_up(name, func, args, kwargs)
        if name == "index" and any(tensor.dtype == torch.bool for tensor in inputs[1:]):
            self._wait("index by a mask")
        if name in ("_to_copy", "copy_") and (copied := self._across(name, args, kwargs)) is not None:
            return copied
        result = func(*args, **kwargs)
        self._count(name, str(func), inputs, [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)])
        if name == "gemm_4bit" and args[0].numel() // args[0].shape[-1] > FUSED_ROWS:
            self._briefly(args[0].shape[-1] * result.shape[-1] * result.element_size())
        return result

    def _made_up(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        if name == "bincount":
            # it reads the largest and the smallest number
            self._wait(name)
            return torch.empty(args[2] if len(args) > 2 else 0, dtype=torch.long, device=args[0].device)
        if name == "_local_scalar_dense":
            dtype = args[0].dtype
            return True if dtype == torch.bool else 0.0 if dtype.is_floating_point else 1
        return func(*args, **kwargs)

    def _across(self, name: str, args: Any, kwargs: Any) -> Tensor | None:
        """A copy between host and card; None for any other."""
        source = args[1] if name == "copy_" else args[0]
        if name == "copy_":
            target, later = args[0].device, kwargs.get("non_blocking", len(args) > 2 and args[2])
        else:
            target, later = torch.device(kwargs.get("device") or source.device), kwargs.get("non_blocking", False)
        if source.device.type == target.type:
            return None
        if target.type == "cuda":
            if not (later and source.untyped_storage()._cdata in self.pinned):
                self._wait("copy to the card")
            self.phase.launches["copy to the card"] += 1
            return None
        self._wait("copy to the host")
        with unset_fake_temporarily():
            dtype = (kwargs.get("dtype") or source.dtype) if name == "_to_copy" else args[0].dtype
            values = torch.ones(source.shape, dtype=dtype)
            return values if name == "_to_copy" else args[0].copy_(values)

    # -------------------------------------------------------------------------------------------------------- counting

    def _count(self, name: str, full: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        for tensor in outputs:
            self._hold(tensor)
            if tensor.is_floating_point() and tensor.device.type == "cuda":
                self.dtypes.add(str(tensor.dtype).removeprefix("torch."))
        if not any(tensor.device.type == "cuda" for tensor in inputs + outputs):
            return
        before = {tensor.untyped_storage()._cdata for tensor in inputs}
        fresh = any(tensor.untyped_storage()._cdata not in before for tensor in outputs)
        if name.startswith(("empty", "new_empty")) or not (fresh or name.endswith("_") or ".out" in full):
            return
        phase = self.phase
        phase.launches[name] += -(-len(inputs) // FOREACH_TENSORS) if name.startswith("_foreach") else 1
        phase.moved += sum(tensor.numel() * tensor.element_size() for tensor in inputs + outputs)
        if name in PRODUCTS:
            left, right = inputs[-2:] if "add" in name else inputs[:2]
            rows, inner, columns = left.shape[-2], left.shape[-1], right.shape[-1]
            batch = left.shape[0] if left.dim() == 3 else 1
            phase.flops += 2.0 * batch * rows * inner * columns
            if inner > 1:
                kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in (left, right)})
                where = "head" if self._in_head() else "layers"
                phase.products[f"{where}: {' x '.join(kinds)}"] += 1

    def _briefly(self, size: int) -> None:
        """Inside of bitsandbytes' product a weight is dequantized where there are more than a few rows."""
        self.bytes += size
        self._see_level()
        self.bytes -= size

    def _hold(self, tensor: Tensor) -> None:
        if tensor.device.type != "cuda":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.alive:
            return
        size = -(-storage.nbytes() // ROUND) * ROUND
        self.alive[key] = size
        self.bytes += size
        if self.keep_sites:
            self.made_by[key] = self._line()
        weakref.finalize(storage, self._drop, key, size)
        self._see_level()

    def _drop(self, key: int, size: int) -> None:
        if self.alive.pop(key, None) is not None:
            self.bytes -= size
            self.made_by.pop(key, None)

    def _see_level(self) -> None:
        self.highest = max(self.highest, self.bytes)
        phase = self.phase
        if self.bytes <= phase.peak:
            return
        # the lines at the peak are summed again only when it has risen by more than a thousandth
        if self.keep_sites and self.bytes > phase.peak * 1.001:
            sites: Counter[str] = Counter()
            for key, size in self.alive.items():
                sites[self.made_by.get(key, "?")] += size
            phase.sites = sites
        phase.peak = self.bytes

    def _wait(self, what: str) -> None:
        where = f"{what} at {self._line()}"
        self.phase.waits[where] += 1
        names = [frame.f_code.co_filename for frame in _frames()]
        if any("/transformers/models/" in name or "/packing/fused_" in name for name in names):
            self.phase.inside[where] += 1

    def _line(self) -> str:
        """The innermost line of qdpo (else of anybody but torch) that is being run."""
        other = "?"
        for frame in _frames():
            name = frame.f_code.co_filename
            if name.startswith(PACKAGE):
                return f"qdpo/{name.removeprefix(PACKAGE)}:{frame.f_lineno}"
            if other == "?" and "/torch/" not in name and "/rehearsal/" not in name:
                other = f"{'/'.join(Path(name).parts[-2:])}:{frame.f_lineno}"
        return other

    def _in_head(self) -> bool:
        return any(
            frame.f_code.co_filename.endswith("/packing/logps.py")
            and frame.f_code.co_name in ("forward", "_score_chunk")
            for frame in _frames()
        )


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _for_card(kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == "cuda"
