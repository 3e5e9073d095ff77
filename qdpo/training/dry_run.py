"""What a run would do, without downloading, loading weights, or writing anything."""

from __future__ import annotations

import sys
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
from qdpo.progress import clock
from qdpo.training import trackers
from qdpo.training.stages.state import total_steps

if TYPE_CHECKING:
    from qdpo.data.prepare import Prepared


def describe(resolved: Resolved, folder: Path, *, verbose: bool = False) -> int:
    """Say what a run would do: first whether it fits, how long it takes and what it learns from, then what to know.

    Local data is read and checked in full; what lies on the hub is only named. The resolved configuration goes to
    stdout where that is a file or a pipe, which makes it a preset.

    Args:
        resolved: the run's configuration.
        folder: where the run would be written.
        verbose: print the configuration on a terminal too, and how the run would go step by step.

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
    data = _check_data(config)
    lines = [
        *_plan(config, device, data),
        *_data(config, data),
        ("length", _length(config, None if data is None else len(data.train))),
        ("loss", f"{' + '.join(config.loss.loss_type)}, beta {config.loss.beta:g}"),
        ("run directory", f"{folder} ({free_bytes(folder) / GIB:.1f} GiB free)"),
        ("device", f"{device.name}, {device.memory / GIB:.1f} GiB"),
    ]
    if verbose:
        lines += [("compute", f"{str(dtype).removeprefix('torch.')}: {reason}"), *_schedule(config)]
    if verbose or not sys.stdout.isatty():
        console.out().print(to_yaml(resolved), end="")
    for name, text in lines:
        console.say(f"{name:<14} {text}")
    remarks = {} if data is None else {"training": data.train_report, "held out": data.heldout_report}
    for part, report in remarks.items():
        for remark in report.remarks():
            tell = console.warn if remark in report.warnings() else console.note
            tell(f"{part}: {remark}")
    for note in config.notes:
        console.note(note)
    try:
        check_gpu(config, device)
    except UnavailableError as error:
        console.note(f"a run would be refused: {error.message}")
    if not verbose and sys.stdout.isatty():
        console.note("--verbose shows every setting and the schedule; `> FILE.yaml` writes the settings as a preset")
    console.good("nothing was downloaded, and no run directory was made")
    return 0


def _where(name: str) -> str:
    return "local" if is_local(name) else "from the hub, downloaded by a run"


def _plan(config: RunConfig, device: Device, data: Prepared | None) -> list[tuple[str, str]]:
    """Whether it fits, how long it takes, what is trained; a model that the planner does not know is no obstacle."""
    from qdpo.planner.cards import card_for, card_of
    from qdpo.planner.data import lengths_for, lengths_from
    from qdpo.planner.find import find_base
    from qdpo.planner.parts import adapter_weights
    from qdpo.planner.plan import plan
    from qdpo.planner.view import change_first

    card, reason = card_of(device), "found here"
    if device.kind == "cpu":
        card, reason = card_for(None, config.card, config.gpu_memory_gib)
    where = f"{config.model.name} ({_where(config.model.name)}), {config.model.quantization}"
    try:
        base = find_base(config.model.name, config.model.revision)
        lengths = lengths_for(config) if data is None else lengths_from(config, data.train, data.heldout)
        found = plan(config, base, card, reason, lengths)
    except QdpoError as error:
        return [("memory", f"not known: {error.message}"), ("model", where)]
    time = "not known: the number of rows is known after download"
    if found.duration.steps is not None:
        time = f"about {clock(found.duration.seconds)} on {found.card.name}, without download and loading (estimated)"
    trained = f"{adapter_weights(found.shape, config) / 1e6:,.2f} of {found.shape.parameters / 1e6:,.0f} M weights"
    change = change_first(found.verdict)
    return [
        ("memory", found.summary()),
        *([("turn first", change)] if change else []),
        ("time", time),
        ("model", f"{where}; trained: LoRA of rank {config.lora.r}, {trained}"),
    ]


def _data(config: RunConfig, data: Prepared | None) -> list[tuple[str, str]]:
    if data is None:
        return [
            ("data", f"{config.data.name} ({_where(config.data.name)}), {config.data.split}"),
            ("template", config.data.template),
        ]
    train, held = (report.summary(remarks=False) for report in (data.train_report, data.heldout_report))
    rows = [("data", train[0]), *(("", line.strip()) for line in train[1:])]
    return [
        *rows,
        ("held out", held[0]),
        *(("", line.strip()) for line in held[1:]),
        ("template", data.template.origin),
    ]


def _check_data(config: RunConfig) -> Prepared | None:
    """The data, when tokenizer and data are local."""
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

    section = data_section.model_copy(update={"contamination": near})
    return prepare(section, load_tokenizer(config.model), config.train.seed)


def _length(config: RunConfig, pairs: int | None) -> str:
    train: Any = config.train
    if pairs is None and train.max_steps is None:
        return (
            f"{train.num_train_epochs:g} epochs in steps of {train.pairs_per_step} pairs; "
            "the number of rows is known after download"
        )
    steps = train.max_steps if pairs is None else total_steps(config, pairs)
    seen = steps * train.pairs_per_step
    of = f" of {pairs:,} ({seen / pairs:.2f} epochs)" if pairs else ""
    return f"{steps:,} steps of {train.pairs_per_step} pairs: {seen:,} pairs{of}"


def _schedule(config: RunConfig) -> list[tuple[str, str]]:
    train: Any = config.train
    warmup = f"{train.warmup_steps} steps" if train.warmup_steps else f"{train.warmup_ratio:.0%}"
    return [
        ("schedule", f"{train.lr_scheduler_type}, peak {train.learning_rate:g}, warmup {warmup}, {train.optim}"),
        (
            "evaluates",
            f"before the first step, every {train.eval_every} steps, at the end; "
            f"saves every {train.save_every} steps or {train.save_minutes:g} minutes",
        ),
    ]
