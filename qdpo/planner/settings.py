"""A configuration on a card, in the terms of the estimate."""

from __future__ import annotations

from qdpo.config.schema import RunConfig
from qdpo.planner.cards import Card
from qdpo.planner.data import Lengths
from qdpo.planner.estimate import Settings


def settings_for(config: RunConfig, card: Card, lengths: Lengths) -> Settings:
    """What the estimate needs to know of a run on a card."""
    return Settings(
        config,
        compute_type(config, card)[2],
        lengths.train_packs(config),
        lengths.scoring_packs(config),
        lengths.several(config),
        cuda=not card.is_cpu,
    )


def compute_type(config: RunConfig, card: Card) -> tuple[str, str, int]:
    """The compute type on a card, why, and its bytes: `qdpo.hardware.choose_dtype` without torch."""
    wanted = config.model.dtype
    if wanted != "auto":
        why = "set by model.dtype"
        if wanted == "bfloat16" and card.capability is not None and card.capability < (8, 0):
            why += ", which this card only emulates: --set model.dtype=float16"
        return wanted, why, 4 if wanted == "float32" else 2
    if card.capability is None:
        return "float32", "CPU", 4
    version = f"{card.capability[0]}.{card.capability[1]}"
    if card.capability >= (8, 0):
        return "bfloat16", f"compute capability {version}", 2
    return "float16", f"compute capability {version} has no bfloat16", 2
