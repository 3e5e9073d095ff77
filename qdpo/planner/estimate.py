"""The estimate: the peak of a run's memory, of what it is made, and when it occurs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from qdpo.config.schema import RunConfig
from qdpo.planner import parts
from qdpo.planner.ledger import Ledger
from qdpo.planner.lengths import PackShape, PairLengths, heaviest
from qdpo.planner.passes import TILE, Pass, PassSettings
from qdpo.planner.sampling import answers
from qdpo.planner.shapes import Shape

CONTEXT = 0.5e9
"""Bytes of a CUDA context with its libraries (cuBLAS, bitsandbytes), which torch does not count; an assumption."""

SLACK = 0.05
"""Share that the caching allocator holds beyond what is used: rounding and fragments; an assumption."""


@dataclass(frozen=True)
class Settings:
    """What the memory of a run depends on besides the shape.

    Attributes:
        config: the run's configuration.
        b: bytes of an activation: 2 in half precision, 4 in fp32.
        train_packs: packs of forward and backward passes; the heaviest decide.
        scoring_packs: packs of passes without gradients.
        several: a step has more than one pack, so that gradients are there when the second begins.
        cuda: on a GPU: with a context and a caching allocator.
    """

    config: RunConfig
    b: int
    train_packs: Sequence[PackShape]
    scoring_packs: Sequence[PackShape]
    several: bool = True
    cuda: bool = True


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


@dataclass
class _Highest:
    """The passes' highest level so far."""

    peak: float = -1.0
    kinds: dict[str, float] = field(default_factory=dict)

    def see(self, ledger: Ledger) -> None:
        peak = max(ledger.peaks.values())
        if peak > self.peak:
            self.peak, self.kinds = peak, ledger.kinds


def estimate(shape: Shape, settings: Settings) -> Estimate:
    """Peak memory of loading, the reference pass, training and merging.

    Args:
        shape: the model's.
        settings: see there.
    """
    config, b = settings.config, settings.b
    weights = parts.weight_parts(shape, config.model.quantization, config.model.double_quant, b)
    loaded = sum(weights.values())
    if kept := parts.kept_bytes(shape, config, b):
        weights["weights kept dequantized"] = kept
    frozen = loaded + kept
    trained = parts.adapter_weights(shape, config)
    gradient = float(parts.LORA * trained)
    casts = parts.adapter_casts(config, trained, b)
    adapter = gradient + casts
    state = parts.optimizer_bytes(config.train.optim, trained)
    paged = settings.cuda and parts.is_paged(config.train.optim)
    resident = 0.0 if paged else state
    passes = pass_settings(shape, settings)

    phases = {"load": loaded + shape.largest_linear * (2 if config.model.quantization == "nf4" else 0)}
    scoring, training = _Highest(), _Highest()
    levels: dict[str, float] = {}
    for pack in heaviest(settings.scoring_packs):
        ledger = Ledger()
        Pass(shape, pack, passes, ledger).score(adapters=False)
        Pass(shape, pack, passes, ledger).score(adapters=True)
        scoring.see(ledger)
        phases["reference"] = max(phases.get("reference", 0), loaded + adapter + ledger.peaks["reference"])
        phases["evaluation"] = max(
            phases.get("evaluation", 0), frozen + adapter + resident + ledger.peaks["evaluation"]
        )
    gradients = gradient if settings.several else 0.0
    for pack in heaviest(settings.train_packs):
        ledger = Ledger()
        Pass(shape, pack, passes, ledger).train()
        training.see(ledger)
        for name, level in ledger.peaks.items():
            levels[name] = max(levels.get(name, 0.0), level)
    for name, level in levels.items():
        phases[name] = frozen + adapter + resident + gradients + level
    phases["gradient check"] = loaded + 2 * adapter + _gradient_check(shape, passes)
    phases["samples"] = frozen + adapter + resident
    phases["samples"] += answers(shape, config, b, cpu=not settings.cuda, adapter=True).peak
    phases["step"] = frozen + adapter + gradient + resident + parts.step_temporaries(config.train.optim, trained)
    phases["merge"] = 0.0
    if not settings.cuda:
        phases["merge"] = parts.memory_of_merge(shape)
    when = max(phases, key=lambda name: phases[name])
    found = {**weights, "LoRA weights (fp32)": gradient, "LoRA weights (half precision)": casts}
    if when in ("forward", "backward"):
        found |= {"gradients": gradients, "optimizer state": resident}
        for kind, size in training.kinds.items():
            found[kind] = found.get(kind, 0.0) + size
    elif when in ("reference", "evaluation"):
        found |= scoring.kinds
        found["optimizer state"] = resident if when == "evaluation" else 0.0
    elif when == "step":
        found |= {"gradients": gradient, "optimizer state": resident}
    found |= _dequantization(shape, settings, found)
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


CHECKED = PackShape((PairLengths(25, 9, 14), PairLengths(8, 17, 5)))
"""The pairs of the start-up probe (`qdpo.engine.probe.probe_pairs`), which the gradient check runs."""


def _gradient_check(shape: Shape, passes: PassSettings) -> float:
    """The engine's pass and the plain one, of which the plain one keeps more: nothing fused, nothing computed twice."""
    ledger = Ledger()
    plain = replace(passes, checkpointed=0, fused_lora=False, fused_mlp=False, fused_norm=False, skip_unscored=False)
    Pass(shape, CHECKED, plain, ledger).train()
    return max(ledger.peaks.values())


def _dequantization(shape: Shape, settings: Settings, found: dict[str, float]) -> dict[str, float]:
    """The part of the activations that is one layer's weights, dequantized where they are used."""
    if settings.config.model.quantization != "nf4" or "activations" not in found:
        return {}
    size = min(shape.largest_linear * (settings.b + 4 / parts.BLOCK), found["activations"])
    return {"dequantized weights": size, "activations": found["activations"] - size}


def pass_settings(shape: Shape, settings: Settings) -> PassSettings:
    """The settings of the passes of a run."""
    config = settings.config
    return PassSettings(
        b=settings.b,
        rank=config.lora.r,
        targets=tuple(config.lora.target_modules),
        quantized=config.model.quantization == "nf4",
        weight_bytes=settings.b,
        checkpointed=parts.checkpointed_layers(shape, config),
        fused_lora=config.packing.fused_lora,
        fused_mlp=config.packing.fused_mlp,
        fused_norm=config.packing.fused_norm,
        skip_unscored=config.packing.skip_unscored,
        gradients_held=settings.several,
        tile=TILE["cuda" if settings.cuda else "cpu"],
    )
