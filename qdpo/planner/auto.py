"""`--auto`: token budgets and the optimizer's paging, chosen for a card."""

from __future__ import annotations

from dataclasses import dataclass

from qdpo import console
from qdpo.config.schema import RunConfig
from qdpo.hardware import find_device
from qdpo.planner.cards import Card, card_of
from qdpo.planner.data import Lengths, lengths_for
from qdpo.planner.estimate import Estimate, estimate
from qdpo.planner.find import find_base
from qdpo.planner.layers import as_it_will_run
from qdpo.planner.settings import compute_type, settings_for
from qdpo.planner.shapes import Shape
from qdpo.planner.timing import duration
from qdpo.planner.verdict import TIGHT, with_changes

BUDGETS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Token budgets that are tried; beyond, a pass gains nothing any more."""


@dataclass(frozen=True)
class Choice:
    """One choice.

    Attributes:
        setting: as `--set` takes it.
        reason: why this value.
    """

    setting: str
    reason: str


def choose(config: RunConfig, shape: Shape, card: Card, lengths: Lengths) -> tuple[RunConfig, list[Choice]]:
    """The settings that use a card best: what changes is memory and speed, never what is learned.

    Args:
        config: the run's configuration.
        shape: the model's.
        card: the card.
        lengths: of the data.

    Returns:
        The changed configuration, and each choice with its reason. Where nothing fits, the smallest budgets.
    """
    room = (1 - TIGHT) * card.memory

    def total(changed: RunConfig) -> float:
        return _estimate(changed, shape, card, lengths).total

    asked = config
    config = with_changes(config, "train", gradient_checkpointing=True, optim="paged_adamw_32bit")
    least = {"checkpoint_layers": "auto", "keep_dequantized": "auto"}
    config = _with(config, **least, tokens_without_grad=BUDGETS[0])
    sizes = [b for b in BUDGETS if b <= _useful(lengths, config)] or [BUDGETS[0]]
    b = compute_type(config, card)[2]
    fastest: tuple[float, int] | None = None
    for size in sizes:
        candidate = _with(config, tokens_per_micro_batch=size)
        if total(candidate) > room:
            break
        # a larger pass leaves less memory for layers that are not computed twice
        seconds = duration(shape, as_it_will_run(candidate, shape, card, lengths), card, b, lengths).step.seconds
        if fastest is None or seconds < 0.99 * fastest[0]:
            fastest = (seconds, size)
    if fastest is None:
        size, why = sizes[0], "the smallest; by the estimate not even this fits"
    else:
        _, size = fastest
        why = f"the fastest of {sizes[0]} to {sizes[-1]} that leave {TIGHT:.0%} of the card free, by estimate"
    config = _with(config, tokens_per_micro_batch=size)
    wide = [budget for budget in BUDGETS if total(_with(config, tokens_without_grad=budget)) <= room]
    config = _with(config, tokens_without_grad=max(wide, default=BUDGETS[0]))
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
    config = with_changes(config, "train", optim="auto")
    if asked.train.optim != "auto":
        choices.append(Choice("train.optim=auto", "paged only where its state does not fit"))
    return config, choices


def choose_here(config: RunConfig) -> list[str]:
    """The settings for this machine as `--set` takes them; each is printed with its reason."""
    card = card_of(find_device())
    base = find_base(config.model.name, config.model.revision)
    _, choices = choose(config, base.shape, card, lengths_for(config))
    for choice in choices:
        console.note(f"{choice.setting}: {choice.reason} ({card.name})")
    return [choice.setting for choice in choices]


def _estimate(config: RunConfig, shape: Shape, card: Card, lengths: Lengths) -> Estimate:
    return estimate(shape, settings_for(config, card, lengths))


def _with(config: RunConfig, **values: int | str) -> RunConfig:
    return with_changes(config, "packing", **values)


def _useful(lengths: Lengths, config: RunConfig) -> int:
    """The smallest of `BUDGETS` that holds a whole step; beyond it nothing changes."""
    longest = max(pair.packed for pair in lengths.train) if lengths.real else lengths.limit.packed
    step = longest * config.train.pairs_per_step
    return next((budget for budget in BUDGETS if budget >= step), BUDGETS[-1])
