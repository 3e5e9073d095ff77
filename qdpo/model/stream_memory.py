"""How much of the host's memory a verification takes, by the shapes of the model's tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

PROCESS_BYTES = 480 << 20
"""Python with torch, transformers, PEFT and bitsandbytes, when models without weights have been made."""

HELD_BYTES = 512 << 20
"""Hidden states and distributions that are kept in the host's memory; what is more lies in files."""

WHOLE_BYTES = 1 << 30
"""A model of up to this size is kept in the host's memory while it writes answers, token by token."""

CHUNK_BYTES = 64 << 20
"""Logits that are in memory at a time."""

SPARE_CARD_BYTES = 1 << 30
"""What stays free on a card beside a whole model: for its keys and values, and what passes through its layers."""

PIECE_BYTES = 320 << 20
"""What rounding a tensor to 4 bits takes beside the tensor."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of weights that decide how much memory a streamed model takes.

    Attributes:
        layer: in the largest layer.
        tensor: in the largest tensor of a layer.
        embedding: in embedding or head, the larger.
        everything: in the whole model.
    """

    layer: int
    tensor: int
    embedding: int
    everything: int

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> Sizes:
        """By the names and shapes of a model's tensors, where layers are numbered modules."""
        layers: dict[str, int] = {}
        tensor = embedding = 0
        for name, shape in shapes.items():
            count, parts = math.prod(shape), name.split(".")
            number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
            if number is None:
                embedding = max(embedding, count)
                continue
            layer = ".".join(parts[: number + 1])
            layers[layer] = layers.get(layer, 0) + count
            tensor = max(tensor, count)
        return cls(max(layers.values(), default=0), tensor, embedding, sum(map(math.prod, shapes.values())))


def verification_memory(sizes: Sizes, computing: int, *, on_card: bool, held: int = HELD_BYTES) -> int:
    """Peak of the host's own (anonymous) memory while an export is verified, in bytes, the process itself included.

    Args:
        sizes: of the model.
        computing: bytes of a weight as the model computes with it.
        on_card: whether layers and hidden states lie on a card.
        held: bytes of hidden states and distributions in the host's memory, at most `HELD_BYTES`.
    """
    # A tensor is in memory as stored (16 bits) and in float32, and twice in 16 bits while it is rounded.
    begins = sizes.embedding * (2 + 4 + (0 if on_card or computing == 4 else computing))
    rounds = max(sizes.tensor * (2 + 2 + 4), sizes.tensor * 3 + min(PIECE_BYTES, 20 * sizes.tensor))
    layers = rounds if on_card else (sizes.layer - sizes.tensor) * computing + rounds
    ends = begins if on_card else max(begins, sizes.embedding * computing + 4 * CHUNK_BYTES)
    # The read-back holds a stored tensor, the merged one and their difference in float32; of a tensor that the adapter
    # changes the base's and the change beside them.
    compares = max(20 * sizes.tensor, 12 * sizes.embedding)
    whole = sizes.everything * computing
    writes = whole if not on_card and whole <= WHOLE_BYTES else 0
    return PROCESS_BYTES + max(held + max(begins, layers, ends, writes), compares)


def card_memory(sizes: Sizes, computing: int, hidden: int) -> int:
    """Peak of the card's memory while an export is verified, in bytes.

    Args:
        sizes: of the model.
        computing: bytes of a weight as the model computes with it.
        hidden: bytes of the hidden states.
    """
    layers = hidden + sizes.layer * computing + 8 * sizes.tensor  # a merged tensor and what is added to it, float32
    ends = hidden + sizes.embedding * (2 * computing + 4) + 4 * CHUNK_BYTES
    in_4_bits = (sizes.everything - 2 * sizes.embedding) * 9 // 16 + 2 * sizes.embedding * computing
    return max(layers, ends, in_4_bits + SPARE_CARD_BYTES)
