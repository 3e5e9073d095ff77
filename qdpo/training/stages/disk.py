"""Between the second stage and the third: is there room on the disk for all that a run will write?"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from qdpo.config.schema import RunConfig
from qdpo.files import require_space, size_of
from qdpo.hardware import GIB
from qdpo.run.folder import EXPORT
from qdpo.training.stages.state import RunState, total_steps

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from qdpo.data.prepare import Prepared

STATE_BYTES = {
    "auto": 8.0,
    "paged_adamw_32bit": 8.0,
    "adamw_torch": 8.0,
    "adamw_torch_fused": 8.0,
    "paged_adamw_8bit": 2.1,
    "adamw_8bit": 2.1,
}
"""Bytes of optimizer state per trained parameter: two moments, in 8 bits with a scale per 256 of them."""
SMALLEST_8BIT = 4096
"""bitsandbytes keeps the moments of smaller tensors in 32 bits."""

FIXED_BYTES = 160 << 10
"""Configs and manifest of a checkpoint, and the names of its tensors."""
LOG_BYTES = 1500
"""One logged step in metrics.jsonl."""
PAIR_BYTES = 140
"""One pair's line in the reference."""
SAMPLE_BYTES = 3000
"""One answered prompt in samples.jsonl."""
PAGES_BYTES = 1 << 20
"""Plots, card, reports and records."""
TOKEN_BYTES = 120
"""One token of a vocabulary in tokenizer.json, its merge included."""


def checkpoint_bytes(parameters: Iterable[torch.Tensor], optim: str) -> int:
    """What one checkpoint takes: the adapter in fp32, the optimizer's state, counters.

    Args:
        parameters: what is trained.
        optim: train.optim.
    """
    total = 0.0
    for parameter in parameters:
        n = parameter.numel()
        total += n * (4 + (STATE_BYTES[optim] if n >= SMALLEST_8BIT else 8.0))
    return int(total) + FIXED_BYTES


def run_bytes(config: RunConfig, parameters: list[torch.Tensor], steps: int, pairs: int, tokenizer: int) -> int:
    """What a run writes at the most at one time.

    Args:
        config: the configuration.
        parameters: what is trained.
        steps: optimizer steps of the whole run.
        pairs: training and held-out pairs.
        tokenizer: bytes of the tokenizer's files.
    """
    train = config.train
    evaluations = steps // train.eval_every + 2
    logs = steps // train.log_every + evaluations + 2
    # One more than are kept, while a new one is written; and the best one, which is kept besides.
    checkpoints = train.keep + 1 + (train.load_best != "none")
    answers = 2 * evaluations * max(config.samples.count, len(config.samples.prompts))
    return (
        checkpoints * checkpoint_bytes(parameters, train.optim)
        + sum(4 * parameter.numel() for parameter in parameters)
        + tokenizer
        + logs * LOG_BYTES
        + pairs * PAIR_BYTES
        + answers * SAMPLE_BYTES
        + PAGES_BYTES
    )


def check_disk(folder: Path, needed: int, export: int) -> None:
    """Refuse a run when its disk has no room for what it writes and for its export.

    Args:
        folder: the run directory; what an interrupted run left there counts as written.
        needed: bytes, from `run_bytes`.
        export: bytes of the export; 0 where none goes to this disk.

    Raises:
        DiskError: there is not enough room.
    """
    exported = size_of(folder / EXPORT)
    left = max(0, needed - size_of(folder) + exported)
    require_space(folder, left, "free some space, choose another disk with --run-dir, or lower train.keep")
    hint = (
        f"{export / GIB:.1f} GiB of that are for a merged 16-bit export; --set train.room_for_export=false leaves it "
        "out, when exports go to another disk (merge-export --out) or are quantised (--format gguf)"
    )
    require_space(folder, left + max(0, export - exported), hint)


def check_room(run: RunState, policy: PeftModel, tokenizer: PreTrainedTokenizerBase, data: Prepared) -> None:
    """Compare what the run will write with what is free.

    Raises:
        DiskError: there is not enough room.
    """
    from qdpo.model.lora import trainable

    needed = run_bytes(
        run.config,
        list(trainable(policy).values()),
        total_steps(run.config, len(data.train)),
        len(data.train) + len(data.heldout),
        TOKEN_BYTES * len(tokenizer),
    )
    export = 2 * (run.record.base.parameters or 0) if run.config.train.room_for_export else 0
    check_disk(run.folder, needed, export)
