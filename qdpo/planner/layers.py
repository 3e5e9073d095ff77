"""What `auto` will become on a card: the optimizer, the layers computed twice, and those whose weights are kept."""

from __future__ import annotations

from collections.abc import Callable

from qdpo.config.schema import RunConfig
from qdpo.planner.cards import Card
from qdpo.planner.data import Lengths
from qdpo.planner.estimate import estimate
from qdpo.planner.optimizer import AUTO, PAGED, choose_optimizer
from qdpo.planner.parts import adapter_weights, checkpointed_layers
from qdpo.planner.settings import compute_type, settings_for
from qdpo.planner.shapes import Shape
from qdpo.planner.verdict import TIGHT, with_changes

CPU_SHARE = 0.5
"""Share of a computer's free memory that activations may take on a CPU, whose memory others need too."""


def as_it_will_run(config: RunConfig, shape: Shape, card: Card, lengths: Lengths) -> RunConfig:
    """The configuration with numbers in place of `auto`, as the run will choose them, by estimate.

    On a card a run measures instead, and may find a little more or less.
    """
    packing = config.packing

    def total(**values: int) -> float:
        return _needed(with_changes(config, "packing", **values), shape, card, lengths)

    room = (1 - TIGHT) * card.memory
    if config.train.optim == AUTO:
        paged = with_changes(config, "train", optim=PAGED)
        chosen = choose_optimizer(
            AUTO,
            adapter_weights(shape, config),
            room - _needed(paged, shape, card, lengths),
            "cpu" if card.is_cpu else "cuda",
            scaled=not card.is_cpu and compute_type(config, card)[0] == "float16",
        )
        config = with_changes(config, "train", optim=chosen.name)
    if packing.checkpoint_layers == "auto" and config.train.gradient_checkpointing:
        if card.is_cpu:
            extra = CPU_SHARE * max(card.memory - total(), 0)
            layers = fewest_recomputed(config, shape, card, lengths, extra)
        else:
            layers = _first(shape.layers - 1, lambda n: total(checkpoint_layers=n) <= room)
        config = with_changes(config, "packing", checkpoint_layers=layers)
    if packing.keep_dequantized == "auto":
        left_out = shape.layers
        if config.model.quantization == "nf4" and not card.is_cpu and not checkpointed_layers(shape, config):
            left_out = _first(shape.layers, lambda n: total(keep_dequantized=shape.layers - n) <= room)
        config = with_changes(config, "packing", keep_dequantized=shape.layers - left_out)
    return config


def fewest_recomputed(config: RunConfig, shape: Shape, card: Card, lengths: Lengths, extra: float) -> int:
    """Layers that must be computed twice so that the activations of the others take no more than `extra` bytes."""
    most = max(shape.layers - 1, 0)

    def total(layers: int) -> float:
        return _needed(with_changes(config, "packing", checkpoint_layers=layers), shape, card, lengths)

    least = total(most)
    return _first(most, lambda n: total(n) - least <= extra)


def _first(most: int, fits: Callable[[int], bool]) -> int:
    """The smallest number up to `most` that fits, where every larger one does too; `most` where none fits."""
    low, high = 0, max(most, 0)
    while low < high:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _needed(config: RunConfig, shape: Shape, card: Card, lengths: Lengths) -> float:
    return estimate(shape, settings_for(config, card, lengths)).total
