"""Before the first step: does the longest micro-batch fit, and what is the rest of the memory good for?

First as many layers as fit keep their activations instead of computing them a second time, then as many frozen 4-bit
weights as fit are kept dequantized. Neither changes a bit of the result, so it may be tried out, and given back when
memory runs out later.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qdpo import console
from qdpo.hardware import GIB, available_memory, is_out_of_memory
from qdpo.planner.optimizer import is_paged, optimizer_bytes, step_temporaries
from qdpo.planner.parts import LORA
from qdpo.run.schema import Optimizer
from qdpo.training import parallel
from qdpo.training.stages.state import RunState

if TYPE_CHECKING:
    from torch import nn

    from qdpo.data.prepare import Prepared
    from qdpo.training.recipe import Recipe

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


class Longest:
    """The longest micro-batch of a run, tried before its first step: nothing of it stays.

    Args:
        recipe: not yet training.

    Attributes:
        batch: the numbers of its pairs; none before it was found.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.batch: list[int] = []

    def run(self) -> None:
        """Forward and backward over it, with a smaller budget where it does not fit.

        Raises:
            MemoryShortageError: not even a single pair fits.
        """
        budgets, budget = self.recipe.budgets, 0
        with self._as_if_nothing_happened():
            while budget != budgets.tokens_per_micro_batch:
                # after a smaller budget, another micro-batch may be the longest
                budget = budgets.tokens_per_micro_batch
                self.batch = max(self._micro_batches(), key=self._tokens)
                self.recipe.forward_backward(self.batch, "the longest micro-batch, tried first")

    def text(self) -> str:
        """In words, once it was run."""
        return f"the longest micro-batch ({self._tokens(self.batch):,} tokens, {len(self.batch)} pairs)"

    def most_tokens(self) -> int:
        """Tokens that no micro-batch exceeds."""
        longest = max((self._tokens([number]) for number in range(len(self.recipe.train_split.pairs))), default=0)
        return max(longest, self.recipe.budgets.tokens_per_micro_batch)

    def peak(self) -> int | None:
        """Peak bytes of tensors on the card in it, None where it does not fit."""
        with self._as_if_nothing_happened():
            return peak_on_card(lambda: self.recipe.passes(self.batch))

    def peak_of_scoring(self) -> int | None:
        """The same in the longest pass of an evaluation."""
        engine, pairs = self.recipe.engine, self.recipe.heldout.pairs
        budget = self.recipe.budgets.tokens_without_grad
        groups = [[pairs[i] for i in group] for group in engine.cut(pairs, budget)]
        longest = max(groups, key=engine.layout.tokens)
        return peak_on_card(lambda: engine.score_all(longest, budget))

    @contextlib.contextmanager
    def _as_if_nothing_happened(self) -> Iterator[None]:
        """Passes inside leave no gradient and no metric."""
        recipe, sums = self.recipe, dict(self.recipe.metrics.sums)
        recipe.policy.train()
        try:
            yield
        finally:
            recipe.policy.zero_grad()
            recipe.metrics.sums = sums

    def _tokens(self, batch: list[int]) -> int:
        return self.recipe.engine.layout.tokens([self.recipe.train_split.pairs[i] for i in batch])

    def _micro_batches(self) -> Iterator[list[int]]:
        """The numbers of the pairs of every micro-batch that is still to come."""
        recipe = self.recipe
        for step in range(recipe.progress.step, recipe.steps):
            batch = recipe.batch(step)
            groups = recipe.cut([recipe.train_split.pairs[i] for i in batch])
            yield from ([batch[i] for i in group] for group in groups)


def peak_on_card(run: Callable[[], object]) -> int | None:
    """Peak bytes of tensors on the card while something runs, all that was there before included; None where it does
    not fit."""
    import torch
    from accelerate.utils.memory import clear_device_cache

    torch.cuda.reset_peak_memory_stats()
    try:
        run()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    else:
        fits = True
    if not fits:
        # only now are the failed pass's activations free: the exception held them
        clear_device_cache(garbage_collection=True)
        return None
    return torch.cuda.max_memory_allocated()


def use_memory(run: RunState, recipe: Recipe, data: Prepared) -> None:
    """Try the longest micro-batch, and turn the memory that is left into speed.

    Raises:
        MemoryShortageError: not even a single pair fits.
    """
    from qdpo.engine.recompute import decoder_layers
    from qdpo.training.invariants import Check

    packing, train = run.config.packing, run.config.train
    model, on_card = recipe.engine.model, run.device.kind == "cuda"
    layers = Layers(
        model,
        run.record.engine.checkpointed_layers or 0,
        0,
        len(decoder_layers(model)),
        (packing.checkpoint_layers == "auto" and train.gradient_checkpointing, packing.keep_dequantized == "auto"),
    )
    recipe.budgets.give_back = layers.give_back
    if packing.keep_dequantized != "auto":
        layers.set(kept=packing.keep_dequantized)
    longest = Longest(recipe)
    if tries_longest(run):
        longest.run()
    peak, limit = (longest.peak(), card_limit()) if on_card else (None, 0)
    set_optimizer(run, recipe, limit - (peak or limit))
    if on_card:
        detail = fill_card(longest, layers, peak, limit - bytes_to_come(recipe))
    else:
        detail = fill_host(run, longest, layers, data)
    run.checks.append(Check("memory", f"{detail}; {layers.text()}").say())
    numbers = {"checkpointed_layers": layers.recomputed, "kept_layers": layers.kept}
    run.save(engine=run.record.engine.model_copy(update=numbers))


def tries_longest(run: RunState) -> bool:
    """Whether the longest micro-batch is tried: a CPU has no memory of its own to run out of, and there the pass would
    only take time."""
    return run.device.kind == "cuda"


def bytes_to_come(recipe: Recipe) -> int:
    """What a step will hold on the card beyond the passes: optimizer state, and gradients of earlier passes."""
    weights, optim = trained_weights(recipe), recipe.optim
    state = 0.0 if is_paged(optim) else optimizer_bytes(optim, weights) + step_temporaries(optim, weights)
    return int(state) + LORA * weights


def trained_weights(recipe: Recipe) -> int:
    """Weights of the adapter."""
    return sum(parameter.numel() for parameter in recipe.trained)


def set_optimizer(run: RunState, recipe: Recipe, free: int) -> None:
    """Choose the optimizer where the run is to choose it; a resumed run takes the one that it began with.

    Args:
        run: whose configuration says what is wanted.
        recipe: not yet training.
        free: bytes on the card that the longest micro-batch leaves.
    """
    from qdpo.planner.optimizer import AUTO, ChosenOptimizer, choose_optimizer

    wanted, known = run.config.train.optim, run.record.optimizer
    if wanted == AUTO and run.resume and known.name:
        chosen = ChosenOptimizer(known.name, known.reason or "")
    else:
        weights = trained_weights(recipe)
        chosen = choose_optimizer(wanted, weights, free - LORA * weights, run.device.kind)
        # all processes take one, whatever is free on their cards
        chosen = parallel.from_first(chosen)
    recipe.optim = chosen.name
    if wanted == AUTO:
        console.note(f"optim {chosen.name}: {chosen.reason}")
    elif run.device.kind == "cpu" and wanted.startswith("paged"):
        console.note(f"optim {wanted}: paging needs CUDA, using the same optimizer of bitsandbytes unpaged")
    run.save(optimizer=Optimizer(name=chosen.name, reason=chosen.reason))


def fill_card(longest: Longest, layers: Layers, peak: int | None, limit: int) -> str:
    """Choose by trying: the peak of each attempt is measured on the card, and held against what is free there.

    Args:
        longest: which fits.
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
            tried = longest.peak()
            if tried is not None and tried <= limit:
                fits, peak = attempt, tried
            else:
                fewest = attempt + 1
            attempt = (fewest + fits) // 2
        layers.set(recomputed=fits)
    scoring = longest.peak_of_scoring()
    if layers.automatic[1] and not layers.recomputed and peak is not None and scoring is not None:
        room = limit - max(peak, scoring)
        layers.set(kept=max((n for n in range(layers.total + 1) if bytes_to_keep(layers.model, n) <= room), default=0))
        if layers.kept and (peak := longest.peak()) is None:
            layers.set(kept=0)
            peak = longest.peak()
    taken = f"{peak / GIB:.2f} GiB at its peak" if peak is not None else "more than there is, now and then"
    return f"{longest.text()} takes {taken}, {limit / GIB:.2f} GiB are free for it"


def card_limit() -> int:
    """Bytes of tensors that a run may hold on the card, what it holds already included."""
    import torch

    free, total = torch.cuda.mem_get_info()
    capped = int(total * torch.cuda.get_per_process_memory_fraction())
    return min(free + torch.cuda.memory_reserved(), capped) - int(RESERVE * min(total, capped))


def activations_at_most(model: nn.Module, tokens: int) -> float:
    """Bytes that one pass keeps at the most for its backward pass, far above what it really keeps: four copies in fp32
    of what goes into every linear layer and comes out of it; with soft-capped attention there is no such bound."""
    from torch import nn

    from qdpo.engine.recompute import decoder_layers

    settings = model.config.get_text_config()  # type: ignore[union-attr, operator]
    if getattr(settings, "attn_logit_softcapping", None) is not None:
        return math.inf
    parts = [part for layer in decoder_layers(model) for part in layer.modules() if isinstance(part, nn.Linear)]
    return 16.0 * tokens * sum(part.in_features + part.out_features for part in parts)


def fill_host(run: RunState, longest: Longest, layers: Layers, data: Prepared) -> str:
    """Choose by a bound, else by the planner's estimate: a CPU has no memory of its own, and what does not fit would be
    swapped.

    Returns:
        What the choice goes by, in words.
    """
    from qdpo.errors import UnavailableError
    from qdpo.planner.auto import CPU_SHARE, fewest_recomputed
    from qdpo.planner.cards import card_of
    from qdpo.planner.data import lengths_from
    from qdpo.planner.find import loaded
    from qdpo.planner.settings import with_changes

    tried = f"{longest.text()} fits, " if longest.batch else ""
    if not layers.automatic[0]:
        return f"{tried}layers as configured"
    room = int(CPU_SHARE * available_memory())
    if activations_at_most(layers.model, longest.most_tokens()) <= room:
        layers.set(recomputed=0)
        return f"{tried}all activations fit {room / GIB:.1f} GiB, half of what is available"
    config = with_changes(run.config, "model", dtype=run.record.dtype.compute)
    lengths, base = lengths_from(config, data.train, data.heldout), loaded(config.model.name, layers.model)
    try:
        layers.set(recomputed=fewest_recomputed(config, base, card_of(run.device), lengths, room))
    except UnavailableError as unknown:
        return f"{tried}no estimate ({unknown.message})"
    return f"{tried}activations within {room / GIB:.1f} GiB by estimate, half of what is available"
