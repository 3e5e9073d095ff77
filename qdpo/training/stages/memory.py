"""Before the first step: does the longest micro-batch fit, and what is the rest of the memory good for?

First as many layers as fit keep their activations instead of computing them a second time, then as many frozen 4-bit
weights as fit are kept dequantized. Neither changes a bit of the result, so it may be tried out, and given back when
memory runs out later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qdpo import console
from qdpo.hardware import GIB, available_memory
from qdpo.planner.parts import LORA
from qdpo.training import parallel
from qdpo.training.stages.state import Run

if TYPE_CHECKING:
    from torch import nn

    from qdpo.data.prepare import Prepared
    from qdpo.training.trainer import DpoTrainer

RESERVE = 0.05
"""Share of the memory that stays free: workspaces, fragments, other programs."""


@dataclass
class Layers:
    """How many layers are computed twice, and of how many the weights are kept dequantized.

    Attributes:
        model: the *ForCausalLM.
        recomputed: layers whose activations are computed again.
        kept: layers whose weights are kept in 16 bits.
        total: layers.
        automatic: whether `recomputed` and `kept` were left to the run.
    """

    model: nn.Module
    recomputed: int
    kept: int
    total: int
    automatic: tuple[bool, bool]

    def set(self, *, recomputed: int | None = None, kept: int | None = None) -> None:
        """Change either number."""
        from qdpo.engine.kept import keep_dequantized
        from qdpo.engine.recompute import checkpoint_layers

        if recomputed is not None:
            self.recomputed = checkpoint_layers(self.model, recomputed)
        if kept is not None:
            self.kept = keep_dequantized(self.model, kept)

    def give_back(self) -> str | None:
        """Free memory that only buys speed; in words what was done, None where there is nothing left to give."""
        most = max(self.total - 1, 0)
        if self.automatic[1] and self.kept:
            words = f"the dequantized weights of {self.kept} layers are dropped"
            self.set(kept=0)
            return words
        if self.automatic[0] and self.recomputed < most:
            words = f"{most} of {self.total} layers are computed twice instead of {self.recomputed}"
            self.set(recomputed=most)
            return words
        return None

    def text(self) -> str:
        """In words."""
        kept = f", weights of {self.kept} kept dequantized" if self.kept else ""
        return f"{self.recomputed} of {self.total} layers computed twice{kept}"


def use_memory(run: Run, trainer: DpoTrainer, data: Prepared) -> None:
    """Try the longest micro-batch, and turn the memory that is left into speed.

    Raises:
        MemoryShortageError: not even a single pair fits.
    """
    from qdpo.engine.recompute import decoder_layers
    from qdpo.training.invariants import Check

    packing, train = run.config.packing, run.config.train
    model = trainer.engine.model
    layers = Layers(
        model,
        run.record["engine"]["checkpointed_layers"],
        0,
        len(decoder_layers(model)),
        (packing.checkpoint_layers == "auto" and train.gradient_checkpointing, packing.keep_dequantized == "auto"),
    )
    trainer.budgets.give_back = layers.give_back
    if packing.keep_dequantized != "auto":
        layers.set(kept=packing.keep_dequantized)
    if trainer.try_longest:
        trainer.run_longest()
    peak, limit = (trainer.peak_of_longest(), card_limit()) if run.device.kind == "cuda" else (None, 0)
    set_optimizer(run, trainer, limit - (peak or limit))
    if run.device.kind == "cuda":
        detail = fill_card(trainer, layers, peak, limit - trainer.bytes_to_come())
    else:
        detail = fill_host(run, trainer, layers, data)
    run.checks.append(Check("memory", f"{detail}; {layers.text()}").say())
    run.save(engine={**run.record["engine"], "checkpointed_layers": layers.recomputed, "kept_layers": layers.kept})


def set_optimizer(run: Run, trainer: DpoTrainer, free: int) -> None:
    """Choose the optimizer where the run is to choose it; a resumed run takes the one that it began with.

    Args:
        run: whose configuration says what is wanted.
        trainer: not yet training.
        free: bytes on the card that the longest micro-batch leaves.
    """
    from transformers.training_args import OptimizerNames

    from qdpo.planner.optimizer import AUTO, ChosenOptimizer, choose_optimizer

    wanted, known = run.config.train.optim, run.record.get("optimizer") if run.resume else None
    if str(getattr(trainer.args.optim, "value", trainer.args.optim)) != ("adamw_torch" if wanted == AUTO else wanted):
        return  # the backend takes another
    if wanted == AUTO and known:
        chosen = ChosenOptimizer(known["name"], known["reason"])
    else:
        scaled = trainer.accelerator.scaler is not None
        gradients = LORA * trainer.trained_weights
        chosen = choose_optimizer(wanted, trainer.trained_weights, free - gradients, run.device.kind, scaled=scaled)
        # all processes take one, whatever is free on their cards
        chosen = parallel.from_first(chosen)
    trainer.args.optim = OptimizerNames(chosen.name)
    if wanted == AUTO:
        console.note(f"optim {chosen.name}: {chosen.reason}")
    run.save(optimizer={"name": chosen.name, "reason": chosen.reason})


def fill_card(trainer: DpoTrainer, layers: Layers, peak: int | None, limit: int) -> str:
    """Choose by trying: the peak of each attempt is measured on the card, and held against what is free there.

    Args:
        trainer: whose longest micro-batch fits.
        layers: with the least memory.
        peak: of that micro-batch, bytes.
        limit: bytes that passes may take.

    Returns:
        What was found, in words.
    """
    from qdpo.engine.kept import bytes_to_keep

    if layers.automatic[0]:
        fewest, fits, attempt = 0, layers.recomputed, 0
        # none at first: where all activations fit, one attempt is enough
        while fewest < fits:
            layers.set(recomputed=attempt)
            tried = trainer.peak_of_longest()
            if tried is not None and tried <= limit:
                fits, peak = attempt, tried
            else:
                fewest = attempt + 1
            attempt = (fewest + fits) // 2
        layers.set(recomputed=fits)
    scoring = trainer.peak_of_scoring()
    if layers.automatic[1] and not layers.recomputed and peak is not None and scoring is not None:
        room = limit - max(peak, scoring)
        layers.set(kept=max((n for n in range(layers.total + 1) if bytes_to_keep(layers.model, n) <= room), default=0))
        if layers.kept and (peak := trainer.peak_of_longest()) is None:
            layers.set(kept=0)
            peak = trainer.peak_of_longest()
    taken = f"{peak / GIB:.2f} GiB at its peak" if peak is not None else "more than there is, now and then"
    return f"{trainer.describe_longest()} takes {taken}, {limit / GIB:.2f} GiB are free for it"


def card_limit() -> int:
    """Bytes of tensors that a run may hold on the card, what it holds already included."""
    import torch

    free, total = torch.cuda.mem_get_info()
    capped = int(total * torch.cuda.get_per_process_memory_fraction())
    return min(free + torch.cuda.memory_reserved(), capped) - int(RESERVE * min(total, capped))


def fill_host(run: Run, trainer: DpoTrainer, layers: Layers, data: Prepared) -> str:
    """Choose by the planner's estimate: a CPU has no memory of its own, and what does not fit would be swapped.

    Returns:
        What the choice goes by, in words.
    """
    from qdpo.errors import UnavailableError
    from qdpo.planner.cards import card_of
    from qdpo.planner.data import lengths_from
    from qdpo.planner.layers import CPU_SHARE, fewest_recomputed
    from qdpo.planner.shapes import shape_of

    tried = f"{trainer.describe_longest()} fits, " if trainer.longest else ""
    if not layers.automatic[0]:
        return f"{tried}layers as configured"
    config: Any = layers.model.config
    try:
        shape = shape_of(config.get_text_config().to_dict(), run.config.model.name)
    except UnavailableError as unknown:
        return f"{tried}no estimate ({unknown.message})"
    room = int(CPU_SHARE * available_memory())
    lengths = lengths_from(run.config, data.train, data.heldout)
    layers.set(recomputed=fewest_recomputed(run.config, shape, card_of(run.device), lengths, room))
    return f"{tried}activations within {room / GIB:.1f} GiB by estimate, half of what is available"
