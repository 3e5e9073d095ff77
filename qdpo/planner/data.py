"""The lengths that a plan is made for: read from the data where it is at hand, else stated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qdpo import console
from qdpo.config.schema import RunConfig
from qdpo.config.steps import steps_for
from qdpo.data.pairs import TokenPair
from qdpo.errors import QdpoError
from qdpo.model.source import is_local
from qdpo.planner.lengths import PackShape, PairLengths, cut, lengths_of, steps_of


@dataclass(frozen=True)
class Known:
    """What is stated of a dataset that is not at hand.

    Attributes:
        rows: training pairs of the published runs; None where their number is not known.
        heldout: held-out pairs.
        typical: lengths of a typical pair, for time only.
        longest: lengths that no pair exceeds, where they are known; else the configuration's limits hold.
    """

    rows: int | None
    heldout: int
    typical: PairLengths
    longest: PairLengths | None = None


# Rows: the papers' and cards' counts. Typical lengths: assumptions in round numbers, which time alone depends on.
_CHAT = PairLengths(160, 300, 300)
KNOWN = {
    "quickstart": Known(1_188, 216, PairLengths(21, 9, 9), PairLengths(23, 10, 10)),
    "allenai/winogrande": Known(40_398, 1_267, PairLengths(24, 8, 8)),
    "HuggingFaceH4/ultrafeedback_binarized": Known(61_966, 2_000, _CHAT),
    "openbmb/UltraFeedback": Known(61_966, 2_000, _CHAT),
    "argilla/dpo-mix-7k": Known(6_750, 750, PairLengths(200, 300, 300)),
    "Intel/orca_dpo_pairs": Known(12_216, 643, PairLengths(200, 250, 250)),
}


@dataclass(frozen=True)
class Lengths:
    """What a run will read, as far as it is known.

    Attributes:
        train: training pairs; a typical one where they are not at hand.
        heldout: held-out pairs, likewise.
        rows: training pairs; None where their number is not known.
        heldout_rows: held-out pairs.
        real: the lengths are those of the data.
        origin: where they come from, in words.
        limit: the longest pair that the configuration allows.
    """

    train: Sequence[PairLengths]
    heldout: Sequence[PairLengths]
    rows: int | None
    heldout_rows: int
    real: bool
    origin: str
    limit: PairLengths

    def steps(self, config: RunConfig) -> int | None:
        """Optimizer steps, where they are known."""
        train = config.train
        if self.rows is None and train.max_steps is None:
            return None
        return steps_for(self.rows or 1, train.pairs_per_step, train.num_train_epochs, train.max_steps)

    def batches(self, config: RunConfig) -> list[list[PairLengths]]:
        """The pairs of some of the run's steps."""
        size = config.train.pairs_per_step
        if not self.real:
            return [[self.train[0]] * size]
        return steps_of(self.train, min(size, len(self.train)), self.steps(config) or 1, config.train.seed)

    def train_packs(self, config: RunConfig) -> list[PackShape]:
        """Packs of forward and backward passes; where the data is not at hand, as full as they can get."""
        budget = config.packing.tokens_per_micro_batch
        if not self.real:
            return [full_pack(self.limit, budget, config.train.pairs_per_step)]
        return [pack for batch in self.batches(config) for pack in cut(batch, budget)]

    def reference_packs(self, config: RunConfig) -> list[PackShape]:
        """Packs of the reference pass, which takes 256 pairs at a time."""
        budget = config.packing.tokens_without_grad
        seen = budget if self.rows is None else self.rows
        if (steps := self.steps(config)) is not None:
            seen = min(seen, steps * config.train.pairs_per_step)
        if not self.real:
            return [full_pack(self.limit, budget, min(seen, 256))]
        # in the order of first use, which is not known: any order
        blocks = [self.train[i : min(i + 256, seen)] for i in range(0, min(seen, 4096), 256)]
        return [pack for block in [*blocks, self.heldout] if block for pack in cut(block, budget)]

    def heldout_packs(self, config: RunConfig) -> list[PackShape]:
        """Packs of an evaluation."""
        budget = config.packing.tokens_without_grad
        if not self.real:
            return [full_pack(self.limit, budget, budget if self.rows is None else max(self.heldout_rows, 1))]
        return cut(self.heldout, budget)

    def longest_prompt(self, config: RunConfig) -> int:
        """Tokens of the longest prompt that an evaluation may answer."""
        if not self.real or config.samples.prompts:
            return config.data.max_prompt_length
        return max((pair.prompt for pair in self.heldout), default=config.data.max_prompt_length)

    def several(self, config: RunConfig) -> bool:
        """Whether some step has more than one pack."""
        budget = config.packing.tokens_per_micro_batch
        if not self.real:
            return self.limit.packed * config.train.pairs_per_step > budget
        return any(len(cut(batch, budget)) > 1 for batch in self.batches(config))


def full_pack(limit: PairLengths, budget: int, most: int) -> PackShape:
    """A pack that is as full as a budget allows, of up to `most` of the longest pairs and a shorter one."""
    count = min(max(budget // limit.packed, 1), most)
    pairs = [limit] * count
    third = (budget - count * limit.packed) // 3
    if third > 4 and count < most:
        pairs.append(PairLengths(third, third + 1, third + 1))
    return PackShape(tuple(pairs))


def lengths_for(config: RunConfig) -> Lengths:
    """The lengths of a run's data: read where data and tokenizer are at hand, else stated."""
    data = config.data
    completion = data.max_length - data.max_prompt_length
    limit = PairLengths(data.max_prompt_length, completion, completion)
    # The embedded pairs' lengths are known, and reading them takes the libraries' import.
    if data.name != "quickstart" and at_hand(config):
        try:
            return _read(config)
        except QdpoError as error:
            console.note(f"the lengths are stated, not read: {error.message}")
    third = max(completion // 3, 1)
    unknown = Known(data.max_rows, data.max_eval_rows or 0, PairLengths(max(limit.prompt // 3, 1), third, third))
    known = KNOWN.get(data.name, unknown)
    typical = known.typical
    rows = None if known.rows is None else min(known.rows, data.max_rows or known.rows)
    heldout = min(known.heldout, data.max_eval_rows or known.heldout)
    longest = (
        f"memory for the longest pairs allowed "
        f"(data.max_length {data.max_length}, data.max_prompt_length {data.max_prompt_length})"
    )
    if known is unknown:
        origin = f"{data.name} is not at hand: {longest}, time for a third of that"
    elif known.longest is not None:
        limit = known.longest
        origin = f"{rows:,} pairs of up to {limit.packed} packed tokens (known of the shipped data)"
    else:
        origin = f"{longest}; time for {rows:,} pairs of typically {typical.prompt} + {typical.chosen} tokens (assumed)"
    return Lengths([typical], [typical], rows, heldout, False, origin, limit)


def at_hand(config: RunConfig) -> bool:
    """Whether data and tokenizer can be read without network: local files, or in the hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    def cached(name: str, kind: str) -> bool:
        return (Path(HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}" / "snapshots").is_dir()

    data = config.data
    names = [data.name, data.eval_name or data.name, *(name.partition("[")[0] for name in data.mixture)]
    tokenizer = config.model.tokenizer or config.model.name
    return all(is_local(name) or cached(name, "datasets") for name in names) and (
        is_local(tokenizer) or cached(tokenizer, "models")
    )


def _read(config: RunConfig) -> Lengths:
    """Prepare the data as a run would, from its cache where it was prepared before."""
    from qdpo.data.prepare import prepare
    from qdpo.libraries import quiet_libraries
    from qdpo.model.load import load_tokenizer
    from qdpo.paths import cache_folder

    quiet_libraries()
    section = config.data.model_copy(update={"contamination": []})
    found = prepare(section, load_tokenizer(config.model), config.train.seed, cache=cache_folder("data"))
    return lengths_from(config, found.train, found.heldout)


def lengths_from(config: RunConfig, train: Sequence[TokenPair], heldout: Sequence[TokenPair]) -> Lengths:
    """The lengths of prepared data."""
    pairs, held = lengths_of(train), lengths_of(heldout)
    longest = max(pairs, key=lambda pair: pair.packed)
    origin = f"read from {config.data.name}: {len(pairs):,} pairs, the longest {longest.packed:,} packed tokens"
    return Lengths(pairs, held, len(pairs), len(held), True, origin, longest)
