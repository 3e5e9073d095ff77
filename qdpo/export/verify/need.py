"""What a verification needs and what there is of it, said before it begins."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from qdpo.console import note, warn
from qdpo.errors import MemoryShortageError, first_line
from qdpo.export.pairs import Heldout
from qdpo.export.verify.parity import completions, tokens_to_keep
from qdpo.export.verify.room import free_on
from qdpo.export.whole import computing_dtype
from qdpo.hardware import GIB, available_memory, is_out_of_memory
from qdpo.model.merged import MergedModel
from qdpo.model.stream_memory import PROCESS_BYTES, Sizes, card_memory, verification_memory
from qdpo.model.tensors import TensorFiles
from qdpo.progress import clock
from qdpo.run.base import base_of

LONG_SECONDS = 1800.0
"""A verification that will take longer comes with a warning and the number of pairs that would take as long."""

LATER = "free some memory, or skip it with --no-verify and run `qdpo verify` on a machine that has more"


def require_memory(run: Path, *, whole: bool = False) -> int:
    """Bytes of the host's memory that verifying an export of a run takes, which must be there.

    Nothing is read for it but the headers of the base's files.

    Args:
        run: the run directory.
        whole: whether models are loaded whole.

    Raises:
        MemoryShortageError: they are not.
    """
    sizes = Sizes.of({name: place.shape for name, place in TensorFiles.of_folder(base_of(run).folder).places.items()})
    computing, on_card = computing_dtype().itemsize, torch.cuda.is_available()
    needed = verification_memory(sizes, computing, on_card=on_card)
    if whole:
        needed += sizes.everything * computing
    card = torch.device("cuda") if on_card else None
    if card and (wanted := card_memory(sizes, computing, 0)) > (free := free_on(card)):
        raise MemoryShortageError(
            f"verifying the export needs {wanted / GIB:.1f} GiB of the card's memory, {free / GIB:.1f} GiB are free",
            "end the programs that use the card, or skip it with --no-verify and run `qdpo verify` later",
        )
    if (free := available_memory()) < needed - PROCESS_BYTES:
        raise MemoryShortageError(
            f"verifying the export needs {needed / GIB:.1f} GiB of memory, {(free + PROCESS_BYTES) / GIB:.1f} GiB are "
            "there",
            LATER,
        )
    return needed


@contextlib.contextmanager
def explained_shortage() -> Iterator[None]:
    """Running out of memory while models are scored, as an error that says what to do.

    Raises:
        MemoryShortageError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryShortageError(
            f"out of memory while the export is scored: {first_line(error, 120)}", LATER
        ) from error


def tell(model: MergedModel, heldout: Heldout, passes: int, device: torch.device, needed: int) -> None:
    """Say what the scoring needs, where that is much.

    Args:
        model: any of the models.
        heldout: the pairs.
        passes: how many models are scored.
        device: where.
        needed: bytes of memory.
    """
    sizes = Sizes.of({name: model.shape(name) for name in model.names})
    asked = completions(heldout.pairs)
    tokens = sum(len(one.ids) for one in asked)
    predicted = sum(len(one.positions) for one in asked)
    computed = tokens * max(sizes.everything - 2 * sizes.embedding, 0) + predicted * sizes.embedding
    seconds = passes * 2 * computed / _speed(device)
    if seconds < LONG_SECONDS / 10:
        return
    kept = tokens_to_keep(heldout, int(model.config["vocab_size"]))
    rows = sum(min(kept, len(one.positions)) for one in asked)
    files = passes * rows * int(model.config["vocab_size"]) * 4
    told = (
        f"{passes} models are scored on {len(heldout.pairs)} pairs ({tokens:,} tokens): {clock(seconds)} of computing "
        f"alone, {needed / GIB:.1f} GiB of memory, {files / GIB:.1f} GiB in files beside the export for a while"
    )
    if seconds < LONG_SECONDS:
        note(told)
        return
    fewer = max(1, int(len(heldout.pairs) * LONG_SECONDS / seconds))
    warn(f"{told}; --pairs {fewer} would take {clock(LONG_SECONDS)}, --no-verify leaves it out")


def _speed(device: torch.device) -> float:
    """Operations a second in products as the layers have them, measured for a fifth of a second."""
    one = torch.ones(512, 2048, dtype=computing_dtype(), device=device)
    other = torch.ones(2048, 2048, dtype=computing_dtype(), device=device)
    torch.mm(one, other)
    began, count = time.monotonic(), 0
    while (seconds := time.monotonic() - began) < 0.2:
        torch.mm(one, other).sum().item()
        count += 1
    return count * 2 * 512 * 2048 * 2048 / seconds
