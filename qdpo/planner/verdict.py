"""Whether a run fits, and where it does not, what to change first and what that gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qdpo.config.schema import RunConfig
from qdpo.hardware import GIB
from qdpo.planner.cards import Card
from qdpo.planner.estimate import Estimate
from qdpo.planner.optimizer import is_paged
from qdpo.planner.settings import with_changes

TIGHT = 0.05
"""Share of the card that should stay free: what an estimate can be wrong by."""


@dataclass(frozen=True)
class Knob:
    """One change and what it gives.

    Attributes:
        setting: as `--set` takes it.
        gives: bytes that the peak falls by.
        fits: it is enough.
        learns_less: it changes what is learned, not only memory and speed.
    """

    setting: str
    gives: float
    fits: bool
    learns_less: bool = False


@dataclass(frozen=True)
class Verdict:
    """The verdict.

    Attributes:
        kind: `fits`, `tight` or `does not fit`.
        spare: bytes that stay free; negative where they lack.
        knob: the first change to make, where it does not fit or is tight and one helps.
    """

    kind: str
    spare: float
    knob: Knob | None = None

    @property
    def text(self) -> str:
        """In words."""
        if self.kind == "fits":
            return f"fits with {self.spare / GIB:.2f} GiB spare"
        if self.kind == "tight":
            return f"tight, {self.spare / GIB:.2f} GiB spare"
        return f"does not fit, {-self.spare / GIB:.2f} GiB too much"


def judge(config: RunConfig, card: Card, found: Estimate, again: Callable[[RunConfig], Estimate]) -> Verdict:
    """Compare the estimate of a configuration with a card; `again` estimates a changed one."""
    spare = card.memory - found.total
    if spare >= TIGHT * card.memory:
        return Verdict("fits", spare)
    return Verdict("tight" if spare >= 0 else "does not fit", spare, _first_knob(config, card, found, again))


def _first_knob(config: RunConfig, card: Card, found: Estimate, again: Callable[[RunConfig], Estimate]) -> Knob | None:
    """The first change, in the order of what it costs, that makes a run fit; else the one that gives most."""
    tried = []
    for setting, changed in knobs(config):
        after = again(changed).total
        knob = Knob(setting, found.total - after, after <= (1 - TIGHT) * card.memory, setting.startswith("lora"))
        if knob.fits:
            return knob
        tried.append(knob)
    best = max(tried, key=lambda knob: knob.gives, default=None)
    return best if best is not None and best.gives > 0 else None


def knobs(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """Changes that save memory: first those that change nothing that is learned."""
    packing, train = config.packing, config.train
    micro, wide = packing.tokens_per_micro_batch, packing.tokens_without_grad
    while wide > 1024:
        wide //= 2
        yield f"packing.tokens_without_grad={wide}", with_changes(config, "packing", tokens_without_grad=wide)
    if not train.gradient_checkpointing:
        changed = with_changes(config, "train", gradient_checkpointing=True)
        yield "train.gradient_checkpointing=true", with_changes(changed, "packing", checkpoint_layers="auto")
    if packing.checkpoint_layers != "auto":
        yield "packing.checkpoint_layers=auto", with_changes(config, "packing", checkpoint_layers="auto")
    small = min(packing.tokens_without_grad, 4096)
    while micro > 512:
        micro //= 2
        values = {"tokens_per_micro_batch": micro, "tokens_without_grad": min(small, micro)}
        setting = " ".join(f"packing.{name}={value}" for name, value in values.items())
        yield setting, with_changes(config, "packing", **values)
    if not is_paged(train.optim):
        optim = "paged_adamw_8bit" if "8bit" in train.optim else "paged_adamw_32bit"
        yield f"train.optim={optim}", with_changes(config, "train", optim=optim)
    if config.model.quantization == "none":
        yield "model.quantization=nf4", with_changes(config, "model", quantization="nf4")
    elif not config.model.double_quant:
        yield "model.double_quant=true", with_changes(config, "model", double_quant=True)
    if config.lora.r > 8:
        yield "lora.r=8", with_changes(config, "lora", r=8)
