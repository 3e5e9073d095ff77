"""Data-parallel training: several processes, each with the whole model, that share the pairs of every step.

Processes are started by `torchrun -m qdpo train ...` or `accelerate launch -m qdpo train ...`. The global batch, the
order of the pairs and the result are those of one process: each takes a share of every batch, gradients and metrics
are summed, and only the first process writes to the run directory. With one process every function here does nothing.

DistributedDataParallel is not used. It hooks into one forward and one backward pass of the module that it wraps, and a
step here has as many as its share has micro-batches, past the wrapper; an adapter's gradients are small enough to be
summed in one go afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qdpo import console
from qdpo.config.schema import RunConfig
from qdpo.errors import ConfigError, QdpoError

ON_GPUS = "cuda:nccl,cpu:gloo"
"""Who carries what between processes with a GPU each. NCCL takes nothing that lies in the machine's memory, as the
scores of an evaluation and all pickled objects do: these go by gloo, and wait for no GPU."""


def begin() -> None:
    """Join the other processes that a launcher has started, each with its GPU; all but the first fall silent."""
    from accelerate import PartialState

    if torch.cuda.is_available():
        PartialState(backend=ON_GPUS)
    else:
        PartialState(cpu=True)
    if not is_first():
        console.silence()


def check(config: RunConfig) -> None:
    """Whether a run can be shared by the processes that there are.

    Raises:
        ConfigError: it cannot.
    """
    if world() == 1:
        return
    if config.engine == "trl":
        raise ConfigError("engine: trl trains in one process", f"set engine: packed, or start one, not {world()}")
    if config.train.pairs_per_step < world():
        raise ConfigError(
            f"{world()} processes cannot share {config.train.pairs_per_step} pairs per step",
            "raise train.pairs_per_step, or start fewer processes",
        )


def world() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes and talks."""
    return not dist.is_initialized() or dist.get_rank() == 0


def wait() -> None:
    """Wait until every process is here."""
    if world() > 1:
        dist.barrier()


def share(costs: Sequence[int]) -> list[int]:
    """This process' share of a list of things to do: their positions, ascending, with about equal sums of costs.

    Args:
        costs: of each, the same list in every process. Largest first to whoever has least (LPT, Graham 1969).
    """
    if world() == 1:
        return list(range(len(costs)))
    loads = [(0, rank) for rank in range(world())]
    mine = []
    for position in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, rank = heapq.heappop(loads)
        heapq.heappush(loads, (load + costs[position], rank))
        if rank == dist.get_rank():
            mine.append(position)
    return sorted(mine)


def seed(run: int, step: int) -> int:
    """A seed for the random numbers of one step in this process."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    return int.from_bytes(hashlib.sha256(f"{run} {step} {rank}".encode()).digest()[:4], "little")


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over all processes; one that a process does not have counts as zero."""
    if world() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten() for parameter in trained if parameter.grad is not None])
    dist.all_reduce(flat)
    for parameter, part in zip(trained, flat.split([parameter.numel() for parameter in trained]), strict=True):
        assert parameter.grad is not None
        parameter.grad.copy_(part.view_as(parameter))


def summed(values: Tensor) -> Tensor:
    """The sum of a tensor, on a GPU or not, over all processes."""
    if world() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values


def gathered(value: Any) -> list[Any]:
    """Every process' value, in the order of the processes; its tensors must be on the CPU."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def agreed(signal: int | None) -> int | None:
    """A signal that any process has seen, in every process."""
    return max((value for value in gathered(signal) if value is not None), default=None)


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """An error that any process raises in the block is raised in every one, which else would wait for it for ever."""
    error = None
    try:
        yield
    except QdpoError as raised:
        error = raised
    for found in gathered(error):
        if found is not None:
            raise found


@contextlib.contextmanager
def first_goes_first() -> Iterator[None]:
    """The first process runs the block, then all others, which find what it has cached."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


@contextlib.contextmanager
def own_folder(folder: Path, *, resume: bool) -> Iterator[Path]:
    """The run directory for the first process; for every other one a copy or an empty folder, thrown away at the end.

    Args:
        folder: the run directory.
        resume: it holds a run that continues: the others need its checkpoints and records too.
    """
    if is_first():
        wait()
        try:
            yield folder
        finally:
            end()
        return
    with tempfile.TemporaryDirectory(prefix="qdpo-") as scratch:
        mine = Path(scratch) / folder.name
        if resume:
            shutil.copytree(folder, mine, ignore=shutil.ignore_patterns("export", "plots", ".lock"))
        wait()
        try:
            yield mine
        finally:
            end()


def end() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def from_first(value: Any) -> Any:
    """The first process' value, in every process."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]
