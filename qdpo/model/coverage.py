"""What of a base is not in 4 bits: counted by kind, and refused where it is much.

bitsandbytes rounds linear layers alone. What a model has beside these stays in 16 bits in silence: experts that are one
tensor, for which a base of 18 GB needs 60.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from qdpo.errors import ConfigError
from qdpo.grammar import counted
from qdpo.model.targets import EXPERTS

NF4_BYTES = 0.516
"""Bytes of a weight in NF4 with its doubly quantized scale (4 + 8/64 + 32/64/256 bits)."""
MOST = 0.05
"""Share of a base's bytes that may stay out of 4 bits unnamed."""


@dataclass
class Left:
    """Weights of one kind.

    Attributes:
        tensors: how many.
        weights: how many values they hold.
        bytes: what they take.
        first: the name of the first one.
    """

    tensors: int = 0
    weights: int = 0
    bytes: float = 0.0
    first: str = ""

    def add(self, name: str, weights: int, size: float) -> None:
        """Count one more."""
        self.tensors, self.weights, self.bytes = self.tensors + 1, self.weights + weights, self.bytes + size
        self.first = self.first or name


@dataclass
class Stored:
    """How a base is held.

    Attributes:
        in_4_bits: its linear layers.
        vectors: embedding, head, norms and biases, which no method rounds to 4 bits.
        others: all else, by kind.
    """

    in_4_bits: Left = field(default_factory=Left)
    vectors: Left = field(default_factory=Left)
    others: dict[str, Left] = field(default_factory=dict)

    @property
    def bytes(self) -> float:
        """Of the whole base."""
        return sum(part.bytes for part in (self.in_4_bits, self.vectors, *self.others.values()))


def stored(model: nn.Module) -> Stored:
    """How a model's weights are held; one on torch's `meta` device too, as they would be."""
    found = Stored()
    seen: set[int] = set()
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    for path, module in model.named_modules():
        for name, weight in module._parameters.items():
            if weight is None or id(weight) in seen:
                continue
            seen.add(id(weight))
            state: Any = getattr(weight, "quant_state", None)
            full = f"{path}.{name}"
            if type(module).__name__ == "Linear4bit" and name == "weight":
                count = state.shape.numel() if state is not None else weight.numel()
                found.in_4_bits.add(full, count, NF4_BYTES * count)
                continue
            size = weight.numel() * weight.element_size()
            if weight.ndim < 2 or isinstance(module, nn.Embedding) or module is head:
                found.vectors.add(full, weight.numel(), size)
            else:
                found.others.setdefault(_kind(full, weight.ndim), Left()).add(full, weight.numel(), size)
    return found


def _kind(name: str, dimensions: int) -> str:
    """What a tensor is called in a message, and in model.in_16_bits."""
    if EXPERTS in name:
        return EXPERTS
    return "convolutions" if "conv" in name and dimensions == 3 else name.removesuffix(".weight").rsplit(".", 1)[-1]


def check_stored(model: nn.Module, name: str, allowed: Collection[str] = ()) -> Stored:
    """Refuse a base of which much would stay out of 4 bits without anybody having said so.

    Args:
        model: the base, or one on `meta` in its place, with bitsandbytes' layers.
        name: of the base, for the message.
        allowed: kinds that may (`model.in_16_bits`).

    Raises:
        ConfigError: it is more than a twentieth of the base's bytes; says of which kinds.
    """
    found = stored(model)
    silent = {kind: left for kind, left in found.others.items() if kind not in allowed}
    size = sum(left.bytes for left in silent.values())
    if size > MOST * found.bytes:
        kinds = sorted(silent, key=lambda kind: -silent[kind].bytes)
        # naming the largest is enough where the rest is little
        while len(kinds) > 1 and size - sum(silent[kind].bytes for kind in kinds[:-1]) <= MOST * found.bytes:
            kinds.pop()
        much = f"{size / found.bytes:.0%} of its bytes ({_gigabytes(size)} of {_gigabytes(found.bytes)})"
        raise ConfigError(
            f"{name}: {much} would not be in 4 bits: {', '.join(_described(kind, silent[kind]) for kind in kinds)}",
            "bitsandbytes rounds linear layers alone; take a dense base, or hold these as they are: "
            f"--set model.in_16_bits=[{','.join(kinds)}]",
        )
    return found


def _described(kind: str, left: Left) -> str:
    return f"{kind} ({counted(left.tensors, 'tensor')}, {_gigabytes(left.bytes)}, first {left.first})"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
