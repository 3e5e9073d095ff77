"""What a run would do, without downloading, loading weights, or writing anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdpo import console
from qdpo.config.resolve import Resolved, to_yaml
from qdpo.config.schema import RunConfig
from qdpo.cuda import check_gpu
from qdpo.errors import QdpoError, UnavailableError
from qdpo.files import free_bytes
from qdpo.hardware import GIB, Device, choose_dtype, find_device
from qdpo.libraries import quiet_libraries
from qdpo.model import unsloth
from qdpo.model.source import find, is_local
from qdpo.training import trackers
from qdpo.training.stages.state import total_steps

if TYPE_CHECKING:
    from qdpo.data.prepare import Prepared


def describe(resolved: Resolved, folder: Path) -> int:
    """Print the resolved configuration on stdout and the plan of the run beside it.

    Local data is read and checked in full; what lies on the hub is only named.

    Returns:
        0; everything that is wrong raises.
    """
    config = resolved.config
    if config.backend == "unsloth":
        unsloth.check(config)
    quiet_libraries()
    trackers.check_installed(config.train.report_to)
    device = find_device()
    stored = find(config.model.name).weight_bytes if is_local(config.model.name) else None
    dtype, reason = choose_dtype(config.model.dtype, device, stored)
    console.out().print(to_yaml(resolved), markup=False, end="")
    say = console.say
    say(f"run directory  {folder} ({free_bytes(folder) / GIB:.1f} GiB free)")
    say(f"device         {device.name}, {device.memory / GIB:.1f} GiB")
    say(f"compute        {str(dtype).removeprefix('torch.')}: {reason}")
    say(f"base           {config.model.name} ({_where(config.model.name)}), {config.model.quantization}")
    say(f"data           {config.data.name} ({_where(config.data.name)}), {config.data.split}")
    say(f"loss           {' + '.join(config.loss.loss_type)}, beta {config.loss.beta:g}")
    data = _check_data(config)
    _say_length(config, None if data is None else len(data.train))
    say(f"plan           {_plan(config, device, data)}")
    for remark in config.notes:
        console.note(remark)
    try:
        check_gpu(config, device)
    except UnavailableError as error:
        console.note(f"a run would be refused: {error.message}")
    console.good("nothing was downloaded, and no run directory was made")
    return 0


def _where(name: str) -> str:
    return "local" if is_local(name) else "from the hub, downloaded by a run"


def _plan(config: RunConfig, device: Device, data: Prepared | None) -> str:
    """What `qdpo plan` says in one line; a model that the planner does not know is no obstacle."""
    from qdpo.planner.cards import card_for, card_of
    from qdpo.planner.data import lengths_for, lengths_from
    from qdpo.planner.find import find_base
    from qdpo.planner.plan import plan

    card, reason = card_of(device), "found here"
    if device.kind == "cpu":
        card, reason = card_for(None, config.card, config.gpu_memory_gib)
    try:
        base = find_base(config.model.name, config.model.revision)
        lengths = lengths_for(config) if data is None else lengths_from(config, data.train, data.heldout)
        return plan(config, base, card, reason, lengths).summary()
    except QdpoError as error:
        return f"none: {error.message}"


def _check_data(config: RunConfig) -> Prepared | None:
    """The data, when tokenizer and data are local; prints what became of the rows."""
    data_section = config.data
    names = [
        config.model.tokenizer or config.model.name,
        data_section.name,
        data_section.eval_name or data_section.name,
    ]
    if not all(is_local(name) for name in [*names, *data_section.mixture]):
        return None
    near = [name for name in data_section.contamination if is_local(name.partition("#")[0])]
    if far := [name for name in data_section.contamination if name not in near]:
        console.note(f"not compared with {', '.join(far)}: on the hub, downloaded by a run")
    from qdpo.data.prepare import prepare
    from qdpo.model.load import load_tokenizer

    data = prepare(
        data_section.model_copy(update={"contamination": near}), load_tokenizer(config.model), config.train.seed
    )
    for report in (data.train_report, data.heldout_report):
        for line in report.summary():
            console.say(line)
    return data


def _say_length(config: RunConfig, pairs: int | None) -> None:
    train: Any = config.train
    if pairs is not None or train.max_steps is not None:
        steps = train.max_steps if pairs is None else total_steps(config, pairs)
        seen = steps * train.pairs_per_step
        of = f" of {pairs:,} ({seen / pairs:.2f} epochs)" if pairs else ""
        console.say(f"length         {steps:,} steps of {train.pairs_per_step} pairs: {seen:,} pairs{of}")
    else:
        console.say(
            f"length         {train.num_train_epochs:g} epochs in steps of {train.pairs_per_step} pairs; "
            "the number of rows is known after download"
        )
    warmup = f"{train.warmup_steps} steps" if train.warmup_steps else f"{train.warmup_ratio:.0%}"
    console.say(
        f"schedule       {train.lr_scheduler_type}, peak {train.learning_rate:g}, warmup {warmup}, {train.optim}"
    )
    console.say(
        f"evaluates      before the first step, every {train.eval_every} steps, at the end; "
        f"saves every {train.save_every} steps or {train.save_minutes:g} minutes"
    )
