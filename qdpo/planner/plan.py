"""The plan of a run: shape, lengths and card together, with verdict, time and disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qdpo.config.schema import RunConfig
from qdpo.hardware import GIB
from qdpo.planner.auto import as_it_will_run
from qdpo.planner.cards import Card
from qdpo.planner.data import Lengths
from qdpo.planner.estimate import Estimate, estimate_for
from qdpo.planner.find import Base
from qdpo.planner.optimizer import optimizer_bytes
from qdpo.planner.parts import (
    Disk,
    adapter_weights,
    checkpointed_layers,
    disk,
    host_loading,
    kept_layers,
    memory_of_merge,
    memory_of_verify,
)
from qdpo.planner.plays import Model, plays_for
from qdpo.planner.settings import compute_type
from qdpo.planner.shapes import Shape
from qdpo.planner.timing import Duration, duration
from qdpo.planner.verdict import Verdict, judge
from qdpo.progress import waiting


@dataclass(frozen=True)
class Plan:
    """What a run will need.

    Attributes:
        config: the run's configuration, with numbers in place of `auto`.
        base: the base, and where it was found.
        shape: its sizes.
        card: the card that it is for.
        card_reason: why this one.
        dtype: the compute type, and why.
        lengths: of the data.
        estimate: of memory.
        verdict: whether it fits, and what to change.
        duration: of time.
        disk: of disk space.
        host: peaks of the host's memory above the libraries' own, by stage.
        optimizer: what is to be said of the optimizer's state.
    """

    config: RunConfig
    base: Base
    shape: Shape
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

    def as_dict(self, gguf: Mapping[str, int]) -> dict[str, Any]:
        """For JSON; bytes, seconds, tokens. `gguf` are the bytes of the GGUF files by kind."""
        config, shape, time = self.config, self.shape, self.duration
        return {
            "name": config.name,
            "base": {
                "name": config.model.name,
                "found": self.base.origin,
                "parameters": shape.parameters,
                "lora_parameters": adapter_weights(shape, config),
                "shape": asdict(shape),
            },
            "card": {**asdict(self.card), "reason": self.card_reason},
            "dtype": {"name": self.dtype[0], "reason": self.dtype[1]},
            "lengths": {"origin": self.lengths.origin, "real": self.lengths.real, "rows": self.lengths.rows},
            "settings": {
                "tokens_per_micro_batch": config.packing.tokens_per_micro_batch,
                "tokens_without_grad": config.packing.tokens_without_grad,
                "checkpointed_layers": checkpointed_layers(shape, config),
                "kept_layers": kept_layers(shape, config),
                "optim": config.train.optim,
            },
            "memory": {**asdict(self.estimate), "total": self.estimate.total},
            "host_memory": self.host,
            "optimizer": self.optimizer,
            "verdict": asdict(self.verdict),
            "time": {
                **asdict(time),
                "seconds": time.seconds if time.steps is not None else None,
                "efficiency": self.card.efficiency,
            },
            "disk": {**asdict(self.disk), "training": self.disk.training, "gguf": dict(gguf)},
        }


def plan(config: RunConfig, base: Base, card: Card, card_reason: str, lengths: Lengths) -> Plan:
    """The plan of a run with a base, on a card and with the lengths of its data."""
    with waiting("playing the run on tensors without values"):
        return _plan(config, base, card, card_reason, lengths)


def _plan(config: RunConfig, base: Base, card: Card, card_reason: str, lengths: Lengths) -> Plan:
    dtype, reason, b = compute_type(config, base, card)
    config = as_it_will_run(config, base, card, lengths)
    model = plays_for(base, config, card).model
    shape = model.shape
    found = estimate_for(config, base, card, lengths)
    return Plan(
        config,
        base,
        shape,
        card,
        card_reason,
        (dtype, reason),
        lengths,
        found,
        judge(config, card, found, lambda changed: estimate_for(changed, base, card, lengths)),
        duration(config, base, card, lengths),
        disk(shape, config, base.stored),
        host_peaks(config, model, b, found, cpu=card.is_cpu),
        about_optimizer(shape, config, card, found),
    )


def host_peaks(config: RunConfig, model: Model, b: int, found: Estimate, *, cpu: bool) -> dict[str, float]:
    """Bytes of the host's memory above the libraries' own, by stage; on a CPU it holds the run too."""
    shape = model.shape
    loading = sum(host_loading(shape, model.static, config.model.quantization, b, cpu=cpu).values())
    training = {"training": found.peak} if cpu else {}
    return {
        "loading": loading,
        **training,
        "export": memory_of_merge(shape),
        "verify": memory_of_verify(shape, b, cpu=cpu),
    }


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
