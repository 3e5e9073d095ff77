"""Is there room on the disk for all that a run will write, and in memory for the base?

Both are asked before the base is read, by the sizes that the headers of its files tell, and the disk once more when the
adapter is there and its sizes are known exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qdpo.config.schema import ALL_LINEAR, LoraSection, RunConfig, is_target
from qdpo.errors import InputMissingError, MemoryShortageError
from qdpo.files import require_space, size_of
from qdpo.hardware import GIB, available_memory, free_swap
from qdpo.run.folder import EXPORT
from qdpo.training.stages.state import RunState, total_steps

if TYPE_CHECKING:
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


def checkpoint_bytes(weights: Iterable[int], optim: str) -> int:
    """What one checkpoint takes: the adapter in fp32, the optimizer's state, counters.

    Args:
        weights: numbers of weights of the tensors that are trained.
        optim: train.optim.
    """
    total = 0.0
    for n in weights:
        total += n * (4 + (STATE_BYTES[optim] if n >= SMALLEST_8BIT else 8.0))
    return int(total) + FIXED_BYTES


def run_bytes(config: RunConfig, weights: list[int], steps: int, pairs: int, tokenizer: int) -> int:
    """What a run writes at the most at one time.

    Args:
        config: the configuration.
        weights: numbers of weights of the tensors that are trained.
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
        checkpoints * checkpoint_bytes(weights, train.optim)
        + 4 * sum(weights)
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

    weights = [parameter.numel() for parameter in trainable(policy).values()]
    _check_disk_for(run, weights, run.record.base.parameters or 0, tokenizer, data)


def shapes_of_base(run: RunState) -> dict[str, tuple[int, ...]]:
    """The shapes of the base's tensors by the headers of its files; none where these are damaged, which loading
    explains."""
    from qdpo.model.source import find
    from qdpo.model.tensors import TensorFiles

    model = run.config.model
    source = find(model.name, model.revision, code=model.trust_remote_code)
    try:
        return {name: place.shape for name, place in TensorFiles.of_folder(source.folder).places.items()}
    except InputMissingError:
        return {}


def check_by_headers(
    run: RunState, tokenizer: PreTrainedTokenizerBase, data: Prepared, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """The same before the base is read, and whether memory holds the base.

    Raises:
        DiskError: there is not enough room.
        MemoryShortageError: the base alone needs more than is free.
    """
    check_memory(run, shapes)
    parameters = sum(map(math.prod, shapes.values()))
    _check_disk_for(run, adapter_weights(run.config.lora, shapes), parameters, tokenizer, data)


def adapter_weights(lora: LoraSection, shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """Weights of the two matrices that each target of the adapter gets, by the shapes of the base's tensors."""
    wanted = lora.target_modules
    targets = [
        shape
        for name, shape in shapes.items()
        # embedding and head are no layers
        if len(shape) == 2
        and (wanted != ALL_LINEAR or ".layers." in name)
        and is_target(name.removesuffix(".weight").rpartition(".")[2], wanted)
    ]
    return [lora.r * side for shape in targets for side in shape]


def check_memory(run: RunState, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a base that cannot be held, however little else is.

    Raises:
        MemoryShortageError: it needs more than is free, on the card or of the machine's memory and swap.
    """
    needed = base_bytes(shapes, nf4=run.config.model.quantization == "nf4")
    if run.device.kind == "cuda":
        import torch

        free, where = torch.cuda.mem_get_info(run.device.torch)[0], run.device.name
    else:
        free, where = available_memory() + free_swap(), "this machine, swap included"
    if needed > free:
        raise MemoryShortageError(
            f"the base {run.config.model.name} takes at least {needed / GIB:.2f} GiB in memory, {free / GIB:.2f} GiB "
            f"are free on {where}",
            "end other programs, or take a smaller base with --model; `qdpo plan` tells what a run needs",
        )


def base_bytes(shapes: Mapping[str, tuple[int, ...]], *, nf4: bool) -> int:
    """What the weights of a base take at the least: linear layers in 4 bits where they are quantized, else 16."""
    total = 0.0
    for name, shape in shapes.items():
        linear = len(shape) > 1 and "embed" not in name and "lm_head" not in name
        total += math.prod(shape) * (0.5 if nf4 and linear else 2.0)
    return int(total)


def _check_disk_for(
    run: RunState, weights: list[int], parameters: int, tokenizer: PreTrainedTokenizerBase, data: Prepared
) -> None:
    needed = run_bytes(
        run.config,
        weights,
        total_steps(run.config, len(data.train)),
        len(data.train) + len(data.heldout),
        TOKEN_BYTES * len(tokenizer),
    )
    check_disk(run.folder, needed, 2 * parameters if run.config.train.room_for_export else 0)
