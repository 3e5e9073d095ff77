"""The estimate: the peak of a run's memory, of what it is made, and when it occurs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from qdpo.config.schema import RunConfig
from qdpo.engine.sizes import rows_at_once
from qdpo.planner import parts
from qdpo.planner.cards import Card
from qdpo.planner.data import Lengths
from qdpo.planner.find import Base
from qdpo.planner.lengths import PackShape, heaviest
from qdpo.planner.optimizer import is_paged, optimizer_bytes, step_temporaries
from qdpo.planner.plays import Plays, plays_for
from qdpo.planner.settings import Settings, settings_for
from qdpo.planner.spans import Bytes, Span, Sum, plus, total

CONTEXT = 0.5e9
"""Bytes of a CUDA context with its libraries (cuBLAS, bitsandbytes), which torch does not count; an assumption."""

SLACK = 0.05
"""Share that the caching allocator holds beyond what is used: rounding and fragments; an assumption."""

PASSES = ("forward", "backward")


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

    parts: Bytes
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
class Level:
    """Highest levels by phase, and of what they were made."""

    kinds: dict[str, Bytes] = field(default_factory=dict)

    def see(self, phase: str, *kinds: Bytes) -> None:
        """Take a moment in."""
        found: Bytes = {}
        for some in kinds:
            found = plus(found, some)
        if sum(found.values()) > sum(self.kinds.get(phase, {}).values()):
            self.kinds[phase] = found

    def see_all(self, seen: Sum, *below: Bytes) -> None:
        """Take the peaks of passes in, above what was there."""
        for phase, kinds in seen.kinds.items():
            self.see(phase, kinds, *below)


def estimate_for(config: RunConfig, base: Base, card: Card, lengths: Lengths, kernel: str | None = None) -> Estimate:
    """Peak memory of a run on a card; `kernel` is that of attention, see `Plays`.

    Raises:
        UnavailableError: the base cannot be played.
    """
    return estimate(plays_for(base, config, card, kernel), settings_for(config, base, card, lengths))


def estimate(plays: Plays, settings: Settings) -> Estimate:
    """Peak memory of loading, checks, the reference pass, training, samples and merging."""
    config, b, model = settings.config, settings.b, plays.model
    shape, stand_in = model.shape, model.stand_in
    loaded = {kind: size for kind, size in model.static.items() if kind != parts.ADAPTER}
    trained = parts.adapter_weights(shape, config)
    adapter = {parts.ADAPTER: parts.LORA * trained}
    if model.cast:
        adapter[parts.CASTS] = b * trained
    if grids := parts.grid_bytes(shape, config, b, cpu=not settings.cuda):
        adapter[parts.ON_GRID] = int(grids)
    kept = {parts.KEPT: int(size)} if (size := parts.kept_bytes(shape, config, b)) else {}
    state, paged = optimizer_bytes(config.train.optim, trained), settings.cuda and is_paged(config.train.optim)
    resident = {} if paged else {parts.STATE: int(state)}
    gradient = {parts.GRADIENTS: parts.LORA * trained}

    all_kept = parts.kept_layers(shape, config) == shape.layers
    level = Level()
    quantized = config.model.quantization == "nf4"
    level.see("load", loaded, {"being quantized": shape.largest_linear * 2} if quantized else {})
    for pack in heaviest(settings.reference_packs):
        level.see_all(total(plays.score(pack, adapters=False), stand_in), loaded, adapter)
    for pack in heaviest(settings.heldout_packs):
        level.see_all(total(plays.score(pack, adapters=True, kept=all_kept), stand_in), loaded, adapter, kept, resident)
    for pack in heaviest(settings.train_packs):
        seen = trained_on(plays, config, pack, settings.several)
        there = gradient if settings.several else {}
        level.see_all(seen, loaded, adapter, kept, resident, there)
    for phase, kinds in answered(plays, config, settings.prompt):
        level.see(phase, kinds, loaded, adapter, kept, resident)
    temporaries = {"update": int(step_temporaries(config.train.optim, trained))}
    level.see("step", loaded, adapter, kept, resident, gradient, temporaries)
    if not settings.cuda:
        level.see("merge", {"merge": int(parts.memory_of_merge(shape))})
    if _check_may_be_highest(level, loaded, adapter, gradient, shape.largest_linear):
        level.see_all(total(plays.check(), stand_in), loaded, adapter)
    phases = {phase: float(sum(kinds.values())) for phase, kinds in level.kinds.items()}
    when = max(phases, key=lambda phase: phases[phase])
    return Estimate(
        {kind: size for kind, size in level.kinds[when].items() if size},
        phases,
        phases[when],
        when,
        paged=state if paged else 0.0,
        context=CONTEXT if settings.cuda else 0.0,
        slack=SLACK * phases[when] if settings.cuda else 0.0,
    )


CHECK_ROOM = 256e6
"""Bytes that the gradients' comparison takes at the most beside gradients and dequantized weights (two short pairs)."""


def _check_may_be_highest(level: Level, loaded: Bytes, adapter: Bytes, gradient: Bytes, largest: int) -> bool:
    """Whether the comparison of gradients, whose play takes long, could be the peak of a run."""
    most = sum(sum(kinds.values()) for kinds in (loaded, adapter, gradient, gradient)) + 8 * largest + CHECK_ROOM
    return most > max(sum(kinds.values()) for kinds in level.kinds.values())


def trained_on(plays: Plays, config: RunConfig, pack: PackShape, several: bool) -> Sum:
    """Forward and backward over a pack through all layers, each computed twice or not as the configuration says.

    Args:
        plays: of the base.
        config: the run's configuration, with numbers in place of `auto`.
        pack: what the pass is over.
        several: gradients of an earlier pack are there.
    """
    shape, stand_in = plays.model.shape, plays.model.stand_in
    again, keep = parts.checkpointed_layers(shape, config), parts.kept_layers(shape, config)

    def form(layer: int) -> Sequence[Span]:
        return plays.step(
            pack,
            all_recomputed=again == shape.layers,
            recomputed=layer < again,
            kept=layer < keep,
            several=several,
        )

    # what is outside of the layers is the same in every form
    return total(form(0), stand_in, form)


def answered(plays: Plays, config: RunConfig, prompt: int) -> Iterator[tuple[str, Bytes]]:
    """Peaks of the written answers: the pass over the prompts, and the last token's with the whole cache.

    Beyond a sliding window the latter is an upper bound: it is played behind a prompt of that length.
    """
    new = config.samples.max_new_tokens
    rows = rows_at_once(sample_rows(config), prompt, new, config.packing.tokens_without_grad)
    if not sample_rows(config):
        return
    stand_in = plays.model.stand_in
    for length, phase in ((prompt, "prompts"), (prompt + max(new - 2, 0), "tokens")):
        yield "samples", total(plays.answers(rows, length), stand_in).kinds[phase]


def sample_rows(config: RunConfig) -> int:
    """Prompts of an evaluation."""
    return len(config.samples.prompts) or config.samples.count
