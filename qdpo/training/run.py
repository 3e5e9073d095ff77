"""One training run, from the resolved configuration to the adapter, the plots and the card: the stages in order."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qdpo import __version__, console
from qdpo.allocator import allocator, expand_segments, return_freed_blocks
from qdpo.config.overrides import SET
from qdpo.config.resolve import Resolved
from qdpo.config.schema import RunConfig
from qdpo.files import sweep
from qdpo.hardware import Device, begin_own_peak, find_device, use_threads
from qdpo.libraries import quiet_libraries
from qdpo.progress import waiting
from qdpo.run import folder as run_folder
from qdpo.run.recipe import recipe_of
from qdpo.run.schema import Hardware
from qdpo.training import parallel, trackers
from qdpo.training.mirror import Mirror
from qdpo.training.resume import accept, reopen, settings_of
from qdpo.training.signals import Stop, Stopped, insisting
from qdpo.training.stages.data import prepare_data
from qdpo.training.stages.disk import check_by_headers, check_room, shapes_of_base
from qdpo.training.stages.grid import begin_on_grid, check_grid
from qdpo.training.stages.memory import use_memory
from qdpo.training.stages.model import load_policy, run_checks
from qdpo.training.stages.moments import keep_moments
from qdpo.training.stages.pace import say_pace
from qdpo.training.stages.reference import reference_pass, token_budgets
from qdpo.training.stages.result import finish
from qdpo.training.stages.state import RunState

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from qdpo.data.prepare import Prepared
    from qdpo.engine.engine import Engine
    from qdpo.training.recipe import Recipe


MIRROR_SECONDS = {"finished": 600.0, "running": 4.0, "stopped": 2.0}
"""How long the end of a run waits for its mirror; after a signal or an error the process may be gone soon."""


def train(
    resolved: Resolved,
    folder: Path,
    *,
    preset: str,
    command: str,
    resume: bool = False,
    allow_changes: Sequence[str] = (),
    stop: Stop | None = None,
    mirror: Path | None = None,
) -> Path:
    """Train as configured.

    Args:
        resolved: the configuration.
        folder: the run directory; for a new run, empty or absent.
        preset: what the user called the configuration.
        command: the command line, for the card.
        resume: continue from the newest whole checkpoint in `folder`.
        allow_changes: what may have changed since the run began although it changes the result, by key.
        stop: says when a signal has asked the run to stop; it is then saved, and can be resumed.
        mirror: folder of a second copy, None for none.

    Returns:
        The run directory.

    Raises:
        QdpoError: of many kinds, each explained.
        Stopped: a signal came while there was nothing to save.
    """
    begin = time.monotonic()  # before the imports, which take seconds
    expand_segments()
    return_freed_blocks()
    stop = stop or Stop()
    config = resolved.config
    if config.backend == "unsloth":
        from qdpo.model import unsloth

        unsloth.start(config)
    check_grid(config)
    trackers.check_installed(config.train.report_to)
    quiet_libraries()
    device = find_device()
    parallel.check(config)
    if config.engine == "trl":
        from qdpo.training import trl_engine

        trl_engine.check(config, device)
    run = RunState(folder, config, device, begin=begin)
    run.record = run_folder.new_record(resolved, __version__, preset, command)
    run.record.settings = settings_of(config)
    if resume:
        sweep(run.folder)
        reopen(run, resolved, allow_changes)
        run.config = config = as_it_began(run, resolved)
    else:
        run.record.recipe = recipe_of(preset, resolved)
        run_folder.create(folder, resolved)
    run.begin_process(command)
    console.say(f"run directory: {folder}")
    use_processor(run)
    run.save(state="running", versions=run_folder.versions(), hardware=describe(device), result=None)
    copy = open_mirror(run, mirror)
    try:
        with insisting(stop):
            run_stages(run, resolved, stop, copy)
    except Stopped:
        run.save(state="stopped")
        raise
    finally:
        if copy is not None:
            copy.close(MIRROR_SECONDS[str(run.record.state)])
    return folder


def run_stages(run: RunState, resolved: Resolved, stop: Stop, mirror: Mirror | None) -> None:
    """The stages of a run, one after the other.

    Args:
        run: what they hand on.
        resolved: what was asked for.
        stop: says when to stop.
        mirror: is told of every checkpoint.
    """
    with waiting("reading and tokenising the data"):
        tokenizer, data = prepare_data(run)
    shapes = shapes_of_base(run)
    check_by_headers(run, tokenizer, data, shapes)
    say_pace(run, resolved, data, shapes)
    with waiting("loading the base and setting up the engine"):
        policy, engine = load_policy(run)
    begin_on_grid(run, policy)
    accept(run)
    check_room(run, policy, tokenizer, data)
    with waiting("checking what must hold before the first step"):
        run_checks(run, engine, policy, tokenizer, data)
    recipe = build_recipe(run, policy, engine, tokenizer, data, stop, mirror)
    recipe.train()
    stop.patient = False
    if not parallel.is_first():
        return
    if stop.signal is not None:
        run.save(state="stopped")
        done = f"step {recipe.progress.step} of {recipe.steps}"
        console.note(f"stopped at {done}; to go on: qdpo train --run-dir {shlex.quote(str(run.folder))} --resume")
        return
    with waiting("writing adapter, plots and report"):
        finish(run, recipe, policy, tokenizer)
    tokens = recipe.progress.tokens_seen
    del recipe, policy, engine  # moments are taken with the layers in memory one by one
    keep_moments(run, tokens)


def build_recipe(
    run: RunState,
    policy: PeftModel,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    data: Prepared,
    stop: Stop,
    mirror: Mirror | None,
) -> Recipe:
    """The training of a run, its reference known and its memory shared out."""
    from qdpo.training.recipe import Recipe
    from qdpo.training.samples import samples_of

    samples = samples_of(run, tokenizer, data, engine)
    if run.config.engine == "trl":
        from qdpo.training.trl_engine import TrlRecipe

        return TrlRecipe(run, policy, engine, data, tokenizer, samples=samples, stop=stop, mirror=mirror)
    budgets = token_budgets(run)
    train, heldout = reference_pass(run, engine, policy, data, budgets)
    recipe = Recipe(
        run,
        policy,
        engine,
        train=train,
        heldout=heldout,
        text=data.text,
        budgets=budgets,
        samples=samples,
        stop=stop,
        mirror=mirror,
    )
    use_memory(run, recipe, data)
    return recipe


def open_mirror(run: RunState, folder: Path | None) -> Mirror | None:
    """Begin a second copy of the run directory, if one is wanted."""
    if folder is None or not parallel.is_first():
        return None
    mirror = Mirror(run.folder, folder)
    mirror.open(str(run.record.id))
    return mirror


def describe(device: Device) -> Hardware:
    """The device, for run.json."""
    import torch

    return Hardware(
        kind=device.kind,
        name=device.name,
        capability=list(device.capability) if device.capability else None,
        memory_bytes=device.memory,
        allocator=allocator() if device.kind == "cuda" else None,
        threads=torch.get_num_threads() if device.kind == "cpu" else None,
    )


def use_processor(run: RunState) -> None:
    """Choose how many threads compute on a CPU, and begin to look at what memory is taken there."""
    if run.device.kind == "cpu":
        begin_own_peak()
        use_threads(run.record.hardware.threads)


def as_it_began(run: RunState, resolved: Resolved) -> RunConfig:
    """The configuration with what a run finds out once, when it begins: the commit of its base, whatever its branch
    points to now, and on a CPU the type to compute in, whatever a measurement would say now."""
    record, config = run.record, resolved.config
    found = {}
    if record.base.name == config.model.name and resolved.origins["model.revision"] != SET and record.base.revision:
        found["revision"] = record.base.revision
    on_cpu = run.device.kind == record.hardware.kind == "cpu"
    if on_cpu and config.model.dtype == "auto" and record.dtype.compute in ("float32", "bfloat16"):
        found["dtype"] = record.dtype.compute
    return config.model_copy(update={"model": config.model.model_copy(update=found)})
