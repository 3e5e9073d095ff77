"""Between the second stage and the third: is there room for what the run will write?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qdpo.training.stages.state import Run, total_steps

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from qdpo.data.prepare import Prepared

TOKEN_BYTES = 120
"""One token of a vocabulary in tokenizer.json, its merge included."""


def check_room(run: Run, policy: PeftModel, tokenizer: PreTrainedTokenizerBase, data: Prepared) -> None:
    """Compare what the run will write with what is free.

    Raises:
        DiskError: there is not enough room.
    """
    from qdpo.model.lora import trainable
    from qdpo.training.preflight import check_disk, run_bytes

    needed = run_bytes(
        run.config,
        list(trainable(policy).values()),
        total_steps(run.config, len(data.train)),
        len(data.train) + len(data.heldout),
        TOKEN_BYTES * len(tokenizer),
    )
    export = 2 * (run.record.base.parameters or 0) if run.config.train.room_for_export else 0
    check_disk(run.folder, needed, export)
