"""A configuration on a card, in the terms of the estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qdpo.config.schema import RunConfig
from qdpo.cpu import ENOUGH_BYTES
from qdpo.planner.cards import Card
from qdpo.planner.data import Lengths
from qdpo.planner.find import Base
from qdpo.planner.lengths import PackShape


@dataclass(frozen=True)
class Settings:
    """What the memory of a run depends on besides the shape.

    Attributes:
        config: the run's configuration.
        b: bytes of an activation, and of a weight where it is used: 2 in half precision, 4 in fp32.
        train_packs: packs of forward and backward passes; the heaviest decide.
        reference_packs: packs of the reference pass.
        heldout_packs: packs of evaluations.
        prompt: tokens of the longest prompt that is answered.
        several: a step has more than one pack, so that gradients are there when the second begins.
        cuda: on a GPU: with a context and a caching allocator.
    """

    config: RunConfig
    b: int
    train_packs: Sequence[PackShape]
    reference_packs: Sequence[PackShape]
    heldout_packs: Sequence[PackShape]
    prompt: int
    several: bool = True
    cuda: bool = True


def settings_for(config: RunConfig, base: Base, card: Card, lengths: Lengths) -> Settings:
    """What the estimate needs to know of a run on a card."""
    return Settings(
        config,
        compute_type(config, base, card)[2],
        lengths.train_packs(config),
        lengths.reference_packs(config),
        lengths.heldout_packs(config),
        lengths.longest_prompt(config),
        lengths.several(config),
        cuda=not card.is_cpu,
    )


def compute_type(config: RunConfig, base: Base, card: Card) -> tuple[str, str, int]:
    """The compute type on a card, why, and its bytes: `qdpo.hardware.choose_dtype` without torch, and, on a CPU,
    without the measurement that a run makes."""
    wanted = config.model.dtype
    if wanted != "auto":
        why = "set by model.dtype"
        if wanted == "bfloat16" and card.capability is not None and card.capability < (8, 0):
            why += ", which this card only emulates: --set model.dtype=float16"
        return wanted, why, 4 if wanted == "float32" else 2
    if card.capability is None:
        if not card.bfloat16:
            return "float32", "CPU without instructions for bfloat16", 4
        if base.stored is not None and base.stored < ENOUGH_BYTES:
            return "float32", "CPU, and a small model", 4
        return "bfloat16", "CPU with instructions for bfloat16, whose speed a run measures", 2
    version = f"{card.capability[0]}.{card.capability[1]}"
    if card.capability >= (8, 0):
        return "bfloat16", f"compute capability {version}", 2
    return "float16", f"compute capability {version} has no bfloat16", 2


def with_changes(config: RunConfig, section: str, **values: Any) -> RunConfig:
    """The configuration with other values in one section."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
