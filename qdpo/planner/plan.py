"""The plan of a run: shape, lengths and card together, with verdict, time and disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qdpo.config.schema import RunConfig
from qdpo.hardware import GIB
from qdpo.planner.cards import Card
from qdpo.planner.data import Lengths
from qdpo.planner.disk import Disk, disk
from qdpo.planner.estimate import Estimate, estimate
from qdpo.planner.find import Base
from qdpo.planner.layers import as_it_will_run
from qdpo.planner.parts import adapter_weights, checkpointed_layers, host_loading, kept_layers, optimizer_bytes
from qdpo.planner.settings import compute_type, settings_for
from qdpo.planner.shapes import Shape
from qdpo.planner.timing import Duration, duration
from qdpo.planner.verdict import Verdict, judge


@dataclass(frozen=True)
class Plan:
    """What a run will need.

    Attributes:
        config: the run's configuration, with numbers in place of `auto`.
        base: the base's shape, and where it was found.
        card: the card that it is for.
        card_reason: why this one.
        dtype: the compute type, and why.
        lengths: of the data.
        estimate: of memory.
        verdict: whether it fits, and what to change.
        duration: of time.
        disk: of disk space.
        host: peak of the host's memory while loading, by part.
        optimizer: what is to be said of the optimizer's state.
    """

    config: RunConfig
    base: Base
    card: Card
    card_reason: str
    dtype: tuple[str, str]
    lengths: Lengths
    estimate: Estimate
    verdict: Verdict
    duration: Duration
    disk: Disk
    host: dict[str, float]
    optimizer: str

    def summary(self) -> str:
        """The plan in one line."""
        name = self.card.name
        need = f"{self.estimate.total / GIB:.2f} GiB at the peak ({self.estimate.when})"
        return f"{need} of {self.card.memory / GIB:.2f} GiB ({name}): {self.verdict.text}"

    def as_dict(self, gguf: Mapping[str, int] | None = None) -> dict[str, Any]:
        """For JSON; bytes, seconds, tokens.

        Args:
            gguf: bytes of the GGUF files by kind.
        """
        steps = self.duration.steps
        return {
            "name": self.config.name,
            "base": {
                "name": self.config.model.name,
                "found": self.base.origin,
                "parameters": self.base.shape.parameters,
                "lora_parameters": adapter_weights(self.base.shape, self.config),
                "shape": asdict(self.base.shape),
            },
            "card": {**asdict(self.card), "reason": self.card_reason},
            "dtype": {"name": self.dtype[0], "reason": self.dtype[1]},
            "lengths": {"origin": self.lengths.origin, "real": self.lengths.real, "rows": self.lengths.rows},
            "settings": {
                "tokens_per_micro_batch": self.config.packing.tokens_per_micro_batch,
                "tokens_without_grad": self.config.packing.tokens_without_grad,
                "checkpointed_layers": checkpointed_layers(self.base.shape, self.config),
                "kept_layers": kept_layers(self.base.shape, self.config),
                "optim": self.config.train.optim,
            },
            "memory": {**asdict(self.estimate), "total": self.estimate.total},
            "host_memory": self.host,
            "optimizer": self.optimizer,
            "verdict": asdict(self.verdict),
            "time": {
                "steps": steps,
                "step": asdict(self.duration.step),
                "training": asdict(self.duration.training),
                "reference": asdict(self.duration.reference),
                "evaluation": asdict(self.duration.evaluation),
                "samples": asdict(self.duration.samples),
                "seconds": self.duration.seconds if steps is not None else None,
                "efficiency": self.card.efficiency,
            },
            "disk": {**asdict(self.disk), "training": self.disk.training, "gguf": dict(gguf or {})},
        }


def plan(config: RunConfig, base: Base, card: Card, card_reason: str, lengths: Lengths) -> Plan:
    """Make a plan.

    Args:
        config: the run's configuration.
        base: the model.
        card: the card that it is for.
        card_reason: why this one.
        lengths: of the data.
    """
    dtype, reason, b = compute_type(config, card)
    shape = base.shape
    config = as_it_will_run(config, shape, card, lengths)
    settings = settings_for(config, card, lengths)
    found = estimate(shape, settings)
    verdict = judge(config, card, found, lambda changed: estimate(shape, settings_for(changed, card, lengths)))
    host = host_loading(shape, config.model.quantization, b, cpu=card.is_cpu)
    return Plan(
        config,
        base,
        card,
        card_reason,
        (dtype, reason),
        lengths,
        found,
        verdict,
        duration(shape, config, card, b, lengths),
        disk(shape, config, base.stored),
        host,
        about_optimizer(shape, config, card, found),
    )


def about_optimizer(shape: Shape, config: RunConfig, card: Card, found: Estimate) -> str:
    """Whether paging the optimizer's state pays, and why."""
    trained = adapter_weights(shape, config)
    state = optimizer_bytes(config.train.optim, trained)
    size = f"both Adam states are {state / 1e9:.2f} GB"
    if card.is_cpu:
        return f"{size}; paging needs CUDA"
    spare = card.memory - found.total
    if found.paged and spare >= found.paged:
        return f"{size} and fit beside the rest: paging is not needed"
    if found.paged:
        return f"{size} and do not fit beside the peak: paging pays"
    if spare < 0 and spare + state >= 0:
        return f"{size}: paging them would make it fit"
    return f"{size}, on the card"
