"""The estimate: the peak of a run's memory, of what it is made, and when it occurs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from qdpo.config.schema import RunConfig
from qdpo.engine.sizes import PROBED
from qdpo.planner import parts
from qdpo.planner.cards import Card
from qdpo.planner.data import Lengths
from qdpo.planner.ledger import Ledger
from qdpo.planner.lengths import PackShape, PairLengths, heaviest
from qdpo.planner.optimizer import is_paged, optimizer_bytes, step_temporaries
from qdpo.planner.passes import Pass
from qdpo.planner.sampling import answers_peak
from qdpo.planner.settings import Settings, settings_for, with_changes
from qdpo.planner.shapes import Shape

CONTEXT = 0.5e9
"""Bytes of a CUDA context with its libraries (cuBLAS, bitsandbytes), which torch does not count; an assumption."""

SLACK = 0.05
"""Share that the caching allocator holds beyond what is used: rounding and fragments; an assumption."""


@dataclass(frozen=True)
class Estimate:
    """Bytes.

    Attributes:
        parts: of the moment of the peak, by part.
        phases: highest level of each phase of a run, by name.
        peak: the highest of them: tensors, as torch counts them.
        when: its phase.
        paged: optimizer state that may leave the card, in no other figure.
        context: CUDA context, which torch does not count.
        slack: what the allocator holds beyond the peak.
    """

    parts: dict[str, float]
    phases: dict[str, float]
    peak: float
    when: str
    paged: float = 0.0
    context: float = 0.0
    slack: float = 0.0

    @property
    def total(self) -> float:
        """What must be free on the card."""
        return self.peak + self.context + self.slack


def estimate_for(config: RunConfig, shape: Shape, card: Card, lengths: Lengths) -> Estimate:
    """Peak memory of a run on a card."""
    return estimate(shape, settings_for(config, card, lengths))


def estimate(shape: Shape, settings: Settings) -> Estimate:
    """Peak memory of loading, the reference pass, training and merging."""
    config, b = settings.config, settings.b
    weights = parts.weight_parts(shape, config.model.quantization, config.model.double_quant, b)
    loaded = sum(weights.values())
    if kept := parts.kept_bytes(shape, config, b):
        weights["weights kept dequantized"] = kept
    trained = parts.adapter_weights(shape, config)
    gradient = float(parts.LORA * trained)
    casts = parts.adapter_casts(config, trained, b)
    adapter = gradient + casts
    state = optimizer_bytes(config.train.optim, trained)
    paged = settings.cuda and is_paged(config.train.optim)
    resident = 0.0 if paged else state
    gradients = gradient if settings.several else 0.0
    always = loaded + kept + adapter + resident

    scoring = _play(shape, settings, settings.scoring_packs, _score)
    training = _play(shape, settings, settings.train_packs, Pass.train)
    phases = {"load": loaded + shape.largest_linear * (2 if config.model.quantization == "nf4" else 0)}
    if scoring:
        phases["reference"] = loaded + adapter + _highest(scoring, "reference")
        phases["evaluation"] = always + _highest(scoring, "evaluation")
    if training:
        phases |= {name: always + gradients + _highest(training, name) for name in ("forward", "backward")}
    phases["gradient check"] = loaded + 2 * adapter + _gradient_check(shape, settings)
    phases["samples"] = always + answers_peak(shape, config, b)
    phases["step"] = loaded + kept + adapter + gradient + resident + step_temporaries(config.train.optim, trained)
    phases["merge"] = 0.0 if settings.cuda else parts.memory_of_merge(shape)
    when = max(phases, key=lambda name: phases[name])
    found = {**weights, "LoRA weights (fp32)": gradient, "LoRA weights (half precision)": casts}
    if when in ("forward", "backward"):
        found |= {"gradients": gradients, "optimizer state": resident}
        for kind, size in _kinds(training).items():
            found[kind] = found.get(kind, 0.0) + size
    elif when in ("reference", "evaluation"):
        found |= _kinds(scoring)
        found["optimizer state"] = resident if when == "evaluation" else 0.0
    elif when == "step":
        found |= {"gradients": gradient, "optimizer state": resident}
    if config.model.quantization == "nf4" and "activations" in found:
        # the part of the activations that is one layer's weights, dequantized where they are used
        size = min(shape.largest_linear * (b + 4 / parts.BLOCK), found["activations"])
        found |= {"dequantized weights": size, "activations": found["activations"] - size}
    peak = phases[when]
    return Estimate(
        {name: size for name, size in found.items() if size},
        phases,
        peak,
        when,
        paged=state if paged else 0.0,
        context=CONTEXT if settings.cuda else 0.0,
        slack=SLACK * peak if settings.cuda else 0.0,
    )


def _play(shape: Shape, settings: Settings, packs: Sequence[PackShape], run: Callable[[Pass], None]) -> list[Ledger]:
    """What the heaviest of some packs take."""
    ledgers = []
    for pack in heaviest(packs):
        ledgers.append(Ledger())
        run(Pass(shape, pack, settings, ledgers[-1]))
    return ledgers


def _score(of: Pass) -> None:
    of.score(adapters=False)
    of.score(adapters=True)


def _highest(ledgers: Sequence[Ledger], phase: str) -> float:
    return max(ledger.peaks[phase] for ledger in ledgers)


def _kinds(ledgers: Sequence[Ledger]) -> dict[str, float]:
    """Of what the highest of all levels was made."""
    return max(ledgers, key=lambda ledger: max(ledger.peaks.values())).kinds


def _gradient_check(shape: Shape, settings: Settings) -> float:
    """The engine's pass and the plain one, of which the plain one keeps more: nothing fused, nothing computed twice."""
    unfused = {"fused_lora": False, "fused_mlp": False, "fused_norm": False, "skip_unscored": False}
    plain = with_changes(settings.config, "packing", checkpoint_layers=0, **unfused)
    pack = PackShape(tuple(PairLengths(*lengths) for lengths in PROBED))
    (ledger,) = _play(shape, replace(settings, config=plain), [pack], Pass.train)
    return max(ledger.peaks.values())
