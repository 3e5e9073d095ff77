"""The reference's log-probabilities: computed once, before training, and kept as data in the run directory."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qdpo.data.pairs import TokenPair
from qdpo.data.prepare import fingerprint
from qdpo.files import atomic_write, digest_of, explained
from qdpo.packing.engine import Engine

if TYPE_CHECKING:
    from peft import PeftModel


def reference_logps(
    engine: Engine,
    policy: PeftModel,
    pairs: Sequence[TokenPair],
    wanted: Sequence[int],
    *,
    budget: int,
    start: bool,
    identity: str,
    folder: Path,
) -> Tensor:
    """Log-probabilities of the pairs under the reference.

    Args:
        engine: runs the policy's model.
        policy: its adapters are disabled for this pass, unless the starting adapter is the reference.
        pairs: n pairs.
        wanted: the pairs that will be needed.
        budget: tokens per pass.
        start: the adapter that training starts from is the reference.
        identity: hash of everything else that the values depend on (weights, quantization, dtype).
        folder: where the values are kept.

    Returns:
        (n, 2) fp32 on the CPU: chosen, rejected, in nats; NaN for pairs that are not wanted.
    """
    from safetensors.torch import load, save

    subset = [pairs[i] for i in wanted]
    path = folder / f"{digest_of([identity, fingerprint(subset)])[:32]}.safetensors"
    if path.is_file():
        values = load(path.read_bytes())["logps"]
    else:
        context = contextlib.nullcontext() if start else policy.disable_adapter()
        with context:
            values = engine.score_all(subset, budget).logps.view(2, -1).T.contiguous()
        with explained(path):
            folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, save({"logps": values}))
    table = torch.full((len(pairs), 2), torch.nan)
    table[torch.tensor(wanted, dtype=torch.long)] = values
    return table
