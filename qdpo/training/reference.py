"""The reference's log-probabilities as data: computed once per pair and base, kept, and used again.

A value is stored under a hash of everything that decides it: base weights and revision, quantization, compute type,
attention path, the starting adapter where that is the reference, and the pair's token ids. What does not matter is not
in the hash: seeds, epochs, beta, learning rate, loss, rank, and which other pairs the dataset has. So a sweep computes
its reference once.

Rounding depends a little on which pairs share a pass. Three things keep a run reproducible to the bit all the same:
passes are made up in the order of first use from the pairs alone; every pass is stored before the next begins; and the
table that a run uses is pinned in its own folder before its first step, where a resumed run finds it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qdpo import console
from qdpo.data.pairs import TokenPair
from qdpo.data.prepare import fingerprint
from qdpo.engine.engine import Engine
from qdpo.errors import TrainingError
from qdpo.files import atomic_write, digest_of, explained, write_json
from qdpo.progress import Progress
from qdpo.training import parallel
from qdpo.training.guards import name_rows
from qdpo.training.out_of_memory import Budgets

if TYPE_CHECKING:
    from peft import PeftModel

BLOCK = 256
"""Pairs, in the order of first use, from which passes are made up: a longer run extends a shorter one's passes."""

SPOT_CHECKS = 16
"""Stored pairs that are computed again when values of an earlier run are used."""

# Largest difference that rounding explains, relative to the value and in nats; by the bits of the compute type.
TOLERANCE = {torch.float64: (1e-6, 1e-4), torch.float32: (1e-5, 1e-3), torch.float16: (2e-3, 0.05)}
COARSE = (1e-2, 0.25)


@dataclass
class Store:
    """Values of one reference, one line per pair, only ever appended to.

    A line that a crash cut short is skipped when read, and the next append starts a new one.

    Attributes:
        path: the file.
        values: chosen and rejected log-probability (nats) by the pair's hash.
    """

    path: Path
    values: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, identity: dict[str, str]) -> Store:
        """The store of a reference, with what earlier runs left in it.

        Args:
            folder: of all stores.
            identity: what the values depend on besides the pair, by name.
        """
        place = folder / digest_of([part for item in sorted(identity.items()) for part in item])[:32]
        store = cls(place / "logps.jsonl")
        with explained(store.path):
            place.mkdir(parents=True, exist_ok=True)
        if not (place / "identity.json").is_file():
            write_json(place / "identity.json", identity)
        if store.path.is_file():
            for line in store.path.read_bytes().split(b"\n"):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    store.values.setdefault(str(entry["pair"]), (float(entry["chosen"]), float(entry["rejected"])))
        return store

    def add(self, entries: dict[str, tuple[float, float]], *, write: bool = True) -> None:
        """Append values; on the disk when this returns, unless another process writes them."""
        new = {key: value for key, value in entries.items() if key not in self.values}
        if not new:
            return
        if not write:
            self.values.update(new)
            return
        # Python writes the shortest decimal that reads back as the same number
        lines = [json.dumps({"pair": key, "chosen": c, "rejected": r}) for key, (c, r) in new.items()]
        text = ("\n".join(lines) + "\n").encode()
        with explained(self.path, needed=len(text)), self.path.open("a+b") as stream:
            stream.seek(0, os.SEEK_END)
            whole = stream.tell() == 0 or (stream.seek(-1, os.SEEK_END) >= 0 and stream.read(1) == b"\n")
            stream.write((b"" if whole else b"\n") + text)
            stream.flush()
            os.fsync(stream.fileno())
        self.values.update(new)

    def set_aside(self) -> Path:
        """Give up what is stored (it is kept under another name) and start anew."""
        aside = self.path.with_name(f"rejected-{self.path.name}")
        with explained(self.path):
            self.path.replace(aside)
        self.values.clear()
        return aside


@dataclass(frozen=True)
class Reference:
    """What the reference says of a dataset.

    Attributes:
        table: (n, 2) fp32 on the CPU: chosen, rejected, in nats; NaN for pairs that are not wanted.
        computed: pairs computed now.
        reused: pairs taken from earlier runs, or from this run before it was interrupted.
        checked: reused pairs computed again.
        gap: largest difference found there, nats.
    """

    table: Tensor
    computed: int
    reused: int
    checked: int = 0
    gap: float = 0.0


def pair_key(pair: TokenPair) -> str:
    """The hash of a pair's token ids."""
    return digest_of([json.dumps([pair.prompt, pair.chosen, pair.rejected], separators=(",", ":"))])[:32]


def reference_logps(
    engine: Engine,
    policy: PeftModel,
    pairs: Sequence[TokenPair],
    wanted: Sequence[int],
    *,
    budgets: Budgets,
    start: bool,
    identity: dict[str, str],
    pin: Path,
    shared: Path | None,
) -> Reference:
    """Log-probabilities of the pairs under the reference.

    Args:
        engine: runs the policy's model.
        policy: its adapters are disabled for this pass, unless the starting adapter is the reference.
        pairs: n pairs.
        wanted: the pairs that will be needed, in the order of first use.
        budgets: tokens per pass; smaller ones where memory runs out.
        start: the adapter that training starts from is the reference.
        identity: everything else that the values depend on, by name.
        pin: folder in the run directory for the table that this run uses.
        shared: folder of values shared between runs; None shares nothing.
    """
    from safetensors.torch import save

    subset = [pairs[i] for i in wanted]
    parts = [part for item in sorted(identity.items()) for part in item]
    path = pin / f"{digest_of([*parts, fingerprint(subset)])[:32]}.safetensors"
    # all processes go by what the first one finds: files may change between two looks
    pinned = parallel.from_first(_read_table(path) if parallel.is_first() else None)
    if pinned is not None:
        return Reference(_table(len(pairs), wanted, pinned), 0, len(subset))
    context = contextlib.nullcontext() if start else policy.disable_adapter()
    store = Store.open(shared if shared is not None else pin / "partial", identity)
    keys = [pair_key(pair) for pair in subset]
    # passes are made up alike in every process, whichever runs out of memory in one
    budget = budgets.tokens_without_grad
    with context:
        found = (0, 0.0)
        if parallel.is_first():
            found = _spot_check(engine, store, dict(zip(keys, subset, strict=True)), budgets)
        checked, gap, store.values = parallel.from_first((*found, store.values))
        reused = sum(key in store.values for key in keys)
        # in a run that goes on, what is stored takes no time
        with Progress("reference log-probabilities", len(subset) - reused, unit="pairs") as progress:
            for begin in range(0, len(subset), BLOCK):
                block = slice(begin, begin + BLOCK)
                _fill(engine, store, subset[block], keys[block], budget, budgets, progress)
    values = torch.tensor([store.values[key] for key in keys], dtype=torch.float32).view(-1, 2)
    if parallel.is_first():
        with explained(path):
            pin.mkdir(parents=True, exist_ok=True)
        atomic_write(path, save({"logps": values}))
    return Reference(_table(len(pairs), wanted, values), len(subset) - reused, reused, checked, gap)


def _table(n: int, wanted: Sequence[int], values: Tensor) -> Tensor:
    table = torch.full((n, 2), torch.nan)
    table[torch.tensor(wanted, dtype=torch.long)] = values
    return table


def _fill(
    engine: Engine,
    store: Store,
    pairs: list[TokenPair],
    keys: list[str],
    budget: int,
    budgets: Budgets,
    progress: Progress,
) -> None:
    """Compute what the store lacks, pass by pass; a pass is made up of the same pairs whatever is stored."""
    missing = {key for key in keys if key not in store.values}
    groups = [g for g in engine.cut(pairs, budget) if not missing.isdisjoint(keys[i] for i in g)]
    for begin in range(0, len(groups), parallel.world()):
        together = groups[begin : begin + parallel.world()]
        mine: dict[str, tuple[float, float]] = {}
        for place in parallel.share([1] * len(together)):
            group = together[place]
            scores = _score(engine, [pairs[i] for i in group], budgets).tolist()
            mine |= {keys[i]: (chosen, rejected) for i, (chosen, rejected) in zip(group, scores, strict=True)}
        for entries in parallel.gathered(mine):
            progress.advance(sum(key not in store.values for key in entries))
            store.add(entries, write=parallel.is_first())


def _score(engine: Engine, pairs: list[TokenPair], budgets: Budgets) -> Tensor:
    """(n, 2) log-probabilities of chosen and rejected, in nats.

    Raises:
        TrainingError: some are not finite.
    """
    values = budgets.score_all(engine, pairs, "the reference pass", tell=False).logps.view(2, -1).T
    finite = torch.isfinite(values).all(1).tolist()
    if not all(finite):
        bad = [pair.row for pair, fine in zip(pairs, finite, strict=True) if not fine]
        raise TrainingError(
            f"the reference's log-probabilities of {len(bad)} of {len(pairs)} pairs of a pass are not finite "
            f"({name_rows(bad)})",
            "the base is damaged or overflows in this dtype; try model.dtype=bfloat16 or float32",
        )
    return values


def _spot_check(engine: Engine, store: Store, pairs: dict[str, TokenPair], budgets: Budgets) -> tuple[int, float]:
    """Compute some stored values again; a store that disagrees is set aside. Returns how many, and the largest gap."""
    stored = [key for key in pairs if key in store.values]
    if not stored:
        return 0, 0.0
    # which ones must not depend on the run's seed, nor change its random numbers
    sample = random.Random().sample(stored, min(SPOT_CHECKS, len(stored)))
    again = _score(engine, [pairs[key] for key in sample], budgets)
    kept = torch.tensor([store.values[key] for key in sample])
    gaps = (again - kept).abs()
    dtype = engine.model.get_input_embeddings().weight.dtype  # type: ignore[operator]
    relative, absolute = TOLERANCE.get(dtype, COARSE)
    wrong = ~(gaps <= relative * again.abs() + absolute)
    if bool(wrong.any()):
        aside = store.set_aside()
        console.warn(
            f"stored reference log-probabilities do not match: {int(wrong.any(1).sum())} of {len(sample)} pairs "
            f"differ, by up to {float(gaps.max()):.3g} nats; kept as {aside}, computing all of them anew"
        )
        return 0, 0.0
    return len(sample), float(gaps.max())


def _read_table(path: Path) -> Tensor | None:
    """The values in a run's own table, None when it is not there or damaged: they can always be computed again."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not path.is_file():
        return None
    try:
        return load(path.read_bytes())["logps"]
    except (SafetensorError, KeyError) as error:
        console.warn(f"{path} is damaged and is computed again: {error}")
        return None
