"""When memory runs out: smaller passes, the same step again, the same result.

How pairs are cut into passes is a memory decision that never changes the mathematics. So a pass that does not fit is
no reason to stop: the token budget is halved and the step begins again, from clean gradients and the same random
numbers. What was found is remembered in run.json, where a resumed run on the same device finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from accelerate.utils.memory import clear_device_cache

from qdpo import console
from qdpo.config.schema import RunConfig
from qdpo.data.pairs import TokenPair
from qdpo.engine.engine import Engine
from qdpo.engine.layouts import longest
from qdpo.errors import MemoryShortageError
from qdpo.hardware import is_out_of_memory
from qdpo.progress import Progress
from qdpo.run.schema import Memory
from qdpo.training import parallel

T = TypeVar("T")

KINDS = {"tokens_per_micro_batch": "with gradients", "tokens_without_grad": "without gradients"}
"""The two budgets by the names of their settings."""


@dataclass(frozen=True)
class Need:
    """What passes over some pairs take, in tokens as the budgets count them.

    Attributes:
        largest: of the largest pass.
        least: of the largest single pair, below which nothing can be cut.
        rows: the rows of the largest pass.
        sequence: tokens of the longest sequence in it.
    """

    largest: int
    least: int
    rows: list[int]
    sequence: int


@dataclass
class Budgets:
    """Packed tokens of one pass, halved when memory runs out.

    Attributes:
        config: the run's, for the budgets to begin with and for advice.
        device: what the budgets were found on.
        tokens_per_micro_batch: of a pass with gradients.
        tokens_without_grad: of a pass without.
        halved: what happened, for run.json.
        remember: called after every change with what should be kept.
        give_back: frees memory that only buys speed, and says what was done; None when there is none left.
    """

    config: RunConfig
    device: str = ""
    tokens_per_micro_batch: int = field(init=False)
    tokens_without_grad: int = field(init=False)
    halved: list[dict[str, Any]] = field(default_factory=list)
    remember: Callable[[dict[str, Any]], None] = lambda found: None
    give_back: Callable[[], str | None] = lambda: None

    def __post_init__(self) -> None:
        self.tokens_per_micro_batch = self.config.packing.tokens_per_micro_batch
        self.tokens_without_grad = self.config.packing.tokens_without_grad

    def recall(self, found: Memory) -> None:
        """Take the budgets that the run found before it was interrupted, if they hold for the same device and settings.

        Args:
            found: what `remember` was given, empty where it was not called.
        """
        if not found:
            return
        if found.device != self.device or found.configured != self._configured():
            console.note("memory: the token budgets that the run had found were for another device or other settings")
            return
        self.tokens_per_micro_batch = found.tokens_per_micro_batch or self.tokens_per_micro_batch
        self.tokens_without_grad = found.tokens_without_grad or self.tokens_without_grad
        self.halved = list(found.halved or ())
        console.note(f"memory: with the token budgets found before: {self._describe()}")

    def retry(
        self, kind: str, work: Callable[[], T], need: Callable[[], Need], when: str, *, together: bool = False
    ) -> T:
        """Do some work, with smaller and smaller passes until it fits.

        Args:
            kind: the budget that the work goes by, a key of `KINDS`.
            work: begins anew at every call.
            need: what its passes take under the budget of the moment.
            when: what is being done, for messages.
            together: all processes do this work, and begin anew when memory runs out in one of them.

        Raises:
            MemoryShortageError: a pass of a single pair does not fit.
        """
        while True:
            results: list[T] = []
            try:
                results.append(work())
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            if all(parallel.gathered(bool(results)) if together else [bool(results)]):
                return results[0]
            # only now are the failed pass's activations free: the exception held them
            clear_device_cache(garbage_collection=True)
            if (given := self.give_back()) is not None:
                console.warn(
                    f"out of memory in {when}: {given}, and again from the start of it; the result stays the same"
                )
                continue
            self._halve(kind, need(), when)

    def score_all(self, engine: Engine, pairs: Sequence[TokenPair], when: str, *, tell: bool = True) -> Any:
        """`Engine.score_all` in passes that fit.

        Args:
            engine: runs them.
            pairs: what to score.
            when: what is being done, for messages.
            tell: how far it is; else whoever calls does.
        """

        def attempt() -> Any:
            budget = self.tokens_without_grad
            if not tell:
                return engine.score_all(pairs, budget)
            with Progress(when, engine.tokens(pairs, budget), unit="tokens") as progress:
                return engine.score_all(pairs, budget, progress.advance)

        return self.retry(
            "tokens_without_grad", attempt, lambda: need_of(engine, pairs, self.tokens_without_grad), when
        )

    def _halve(self, kind: str, need: Need, when: str) -> None:
        before = getattr(self, kind)
        # a budget that is larger than what there is to do would be halved for nothing
        after = max(min(before, need.largest) // 2, need.least)
        if after >= min(before, need.largest):
            raise self.shortage(when, need)
        setattr(self, kind, after)
        self.halved.append({"setting": f"packing.{kind}", "from": before, "to": after, "when": when})
        console.warn(
            f"out of memory in {when}: packing.{kind} {before:,} -> {after:,}, and again from the start of it; "
            "the result stays the same"
        )
        self.remember(self.as_dict())

    def shortage(self, when: str, need: Need) -> MemoryShortageError:
        """The error for a pass that cannot be made smaller."""
        rows = ", ".join(map(str, need.rows))
        first, second = settings_to_try(self.config, need.sequence)
        return MemoryShortageError(
            f"out of memory in {when}, in a pass of a single pair (row {rows}, {need.sequence:,} tokens in its longer "
            "sequence): nothing is left to halve; what was saved is intact",
            f"try --set {first}, or --set {second}",
        )

    def as_dict(self) -> dict[str, Any]:
        """For run.json."""
        return {
            "device": self.device,
            "configured": self._configured(),
            **{kind: getattr(self, kind) for kind in KINDS},
            "halved": self.halved,
        }

    def _configured(self) -> dict[str, int]:
        return {kind: getattr(self.config.packing, kind) for kind in KINDS}

    def _describe(self) -> str:
        return ", ".join(f"{getattr(self, kind):,} {words}" for kind, words in KINDS.items())


def need_of(engine: Engine, pairs: Sequence[TokenPair], budget: int) -> Need:
    """What passes over the pairs take under a budget."""
    groups = [[pairs[i] for i in group] for group in engine.cut(pairs, budget)]
    largest = max(groups, key=lambda group: engine.layout.tokens(group))
    return Need(
        engine.layout.tokens(largest),
        max(engine.layout.tokens([pair]) for pair in pairs),
        [pair.row for pair in largest],
        max(map(longest, largest)),
    )


def settings_to_try(config: RunConfig, sequence: int) -> list[str]:
    """Two settings, with values, that need less memory, the one that costs least first.

    Args:
        config: the run's.
        sequence: tokens of the longest sequence in the pass that did not fit.
    """
    shorter = max(8, sequence * 3 // 4 // 8 * 8)
    length = f"data.max_length={shorter}"
    if config.data.max_prompt_length >= shorter:
        length += f" --set data.max_prompt_length={shorter // 2}"
    options = [
        (not config.train.gradient_checkpointing, "train.gradient_checkpointing=true"),
        (config.packing.checkpoint_layers != "auto", "packing.checkpoint_layers=auto"),
        (config.packing.keep_dequantized not in (0, "auto"), "packing.keep_dequantized=auto"),
        (config.model.quantization == "none", "model.quantization=nf4"),
        (True, length),
        (config.lora.r > 1, f"lora.r={config.lora.r // 2}"),
        (True, "lora.target_modules=[q_proj,v_proj]"),
    ]
    return [text for holds, text in options if holds][:2]
