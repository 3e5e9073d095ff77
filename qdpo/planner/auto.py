"""Settings chosen for a card: what `auto` will become in a run, and the budgets that `--auto` takes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from qdpo import console
from qdpo.config.schema import RunConfig
from qdpo.hardware import find_device
from qdpo.planner.cards import Card, card_of
from qdpo.planner.data import Lengths, lengths_for
from qdpo.planner.estimate import estimate_for, trained_on
from qdpo.planner.find import Base, find_base
from qdpo.planner.lengths import heaviest
from qdpo.planner.optimizer import AUTO, PAGED, choose_optimizer
from qdpo.planner.parts import adapter_weights, checkpointed_layers
from qdpo.planner.plays import plays_for
from qdpo.planner.settings import settings_for, with_changes
from qdpo.planner.timing import duration
from qdpo.planner.verdict import TIGHT

CPU_SHARE = 0.5
"""Share of a computer's free memory that activations may take on a CPU, whose memory others need too."""

BUDGETS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Token budgets that are tried; beyond, a pass gains nothing any more."""


def as_it_will_run(config: RunConfig, base: Base, card: Card, lengths: Lengths) -> RunConfig:
    """The configuration with numbers in place of `auto`, as the run will choose them, by estimate.

    On a card a run measures instead, and may find a little more or less.
    """
    packing, shape = config.packing, plays_for(base, config, card).model.shape

    def total(**values: int) -> float:
        return estimate_for(with_changes(config, "packing", **values), base, card, lengths).total

    room = (1 - TIGHT) * card.memory
    if config.train.optim == AUTO:
        paged = with_changes(config, "train", optim=PAGED)
        chosen = choose_optimizer(
            AUTO,
            adapter_weights(shape, config),
            room - estimate_for(paged, base, card, lengths).total,
            "cpu" if card.is_cpu else "cuda",
        )
        config = with_changes(config, "train", optim=chosen.name)
    if packing.checkpoint_layers == "auto" and config.train.gradient_checkpointing:
        if card.is_cpu:
            extra = CPU_SHARE * max(card.memory - total(), 0)
            layers = fewest_recomputed(config, base, card, lengths, extra)
        else:
            layers = _first(shape.layers - 1, lambda n: total(checkpoint_layers=n) <= room)
        config = with_changes(config, "packing", checkpoint_layers=layers)
    if packing.keep_dequantized == "auto":
        left_out = shape.layers
        if config.model.quantization == "nf4" and not card.is_cpu and not checkpointed_layers(shape, config):
            left_out = _first(shape.layers, lambda n: total(keep_dequantized=shape.layers - n) <= room)
        config = with_changes(config, "packing", keep_dequantized=shape.layers - left_out)
    return config


def fewest_recomputed(config: RunConfig, base: Base, card: Card, lengths: Lengths, extra: float) -> int:
    """Layers that must be computed twice so that the activations of the others take no more than `extra` bytes."""
    plays, settings = plays_for(base, config, card), settings_for(config, base, card, lengths)
    most = max(plays.model.shape.layers - 1, 0)

    def highest(layers: int) -> float:
        changed = with_changes(config, "packing", checkpoint_layers=layers)
        passes = (trained_on(plays, changed, pack, settings.several) for pack in heaviest(settings.train_packs))
        return max(max(seen.peaks.values()) for seen in passes)

    least = highest(most)
    return _first(most, lambda n: highest(n) - least <= extra)


def _first(most: int, fits: Callable[[int], bool]) -> int:
    """The smallest number up to `most` that fits, where every larger one does too; `most` where none fits."""
    # the end first: a play less where it fits
    return 0 if fits(0) else bisect_left(range(max(most, 0)), True, key=fits)


@dataclass(frozen=True)
class Choice:
    """One choice.

    Attributes:
        setting: as `--set` takes it.
        reason: why this value.
    """

    setting: str
    reason: str


def choose(config: RunConfig, base: Base, card: Card, lengths: Lengths) -> tuple[RunConfig, list[Choice]]:
    """The settings that use a card best: what changes is memory and speed, never what is learned.

    Returns:
        The changed configuration, and each choice with its reason. Where nothing fits, the smallest budgets.
    """
    asked = config
    least = {"checkpoint_layers": "auto", "keep_dequantized": "auto"}
    config = with_changes(config, "train", gradient_checkpointing=True, optim=PAGED)
    config = with_changes(config, "packing", **least, tokens_without_grad=BUDGETS[0])

    def fits(**values: int) -> bool:
        changed = with_changes(config, "packing", **values)
        return estimate_for(changed, base, card, lengths).total <= (1 - TIGHT) * card.memory

    sizes = [b for b in BUDGETS if b <= _useful(lengths, config)] or [BUDGETS[0]]
    fastest: tuple[float, int] | None = None
    for size in sizes:
        if not fits(tokens_per_micro_batch=size):
            break
        # a larger pass leaves less memory for layers that are not computed twice
        ran = as_it_will_run(with_changes(config, "packing", tokens_per_micro_batch=size), base, card, lengths)
        seconds = duration(ran, base, card, lengths).step.seconds
        if fastest is None or seconds < 0.99 * fastest[0]:
            fastest = (seconds, size)
    if fastest is None:
        size, why = sizes[0], "the smallest; by the estimate not even this fits"
    else:
        _, size = fastest
        why = f"the fastest of {sizes[0]} to {sizes[-1]} that leave {TIGHT:.0%} of the card free, by estimate"
    config = with_changes(config, "packing", tokens_per_micro_batch=size)
    wide = max((budget for budget in BUDGETS if fits(tokens_without_grad=budget)), default=None)
    config = with_changes(config, "packing", tokens_without_grad=wide or BUDGETS[0])
    choices = []
    if not asked.train.gradient_checkpointing:
        choices = [Choice("train.gradient_checkpointing=true", "so that layers can be checkpointed at all")]
    choices += [
        Choice(f"packing.{name}=auto", "the run takes what memory there is")
        for name, value in least.items()
        if getattr(asked.packing, name) != value
    ]
    choices += [
        Choice(f"packing.tokens_per_micro_batch={size}", why),
        Choice(
            f"packing.tokens_without_grad={config.packing.tokens_without_grad}",
            "the largest that leaves as much free" if wide else "the smallest",
        ),
    ]
    config = with_changes(config, "train", optim=AUTO)
    if asked.train.optim != AUTO:
        choices.append(Choice("train.optim=auto", "paged only where its state does not fit"))
    return config, choices


def choose_here(config: RunConfig) -> list[str]:
    """The settings for this machine as `--set` takes them; each is printed with its reason."""
    card = card_of(find_device())
    base = find_base(config.model.name, config.model.revision)
    _, choices = choose(config, base, card, lengths_for(config))
    for choice in choices:
        console.note(f"{choice.setting}: {choice.reason} ({card.name})")
    return [choice.setting for choice in choices]


def _useful(lengths: Lengths, config: RunConfig) -> int:
    """The smallest of `BUDGETS` that holds a whole step; beyond it nothing changes."""
    longest = max(pair.packed for pair in lengths.train) if lengths.real else lengths.limit.packed
    step = longest * config.train.pairs_per_step
    return next((budget for budget in BUDGETS if budget >= step), BUDGETS[-1])
