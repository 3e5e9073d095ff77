"""One training run, from the resolved configuration to the adapter, the plots and the card: the stages in order."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdpo import __version__, console
from qdpo.config.resolve import Resolved
from qdpo.config.schema import RunConfig
from qdpo.errors import ConfigError
from qdpo.files import sweep
from qdpo.hardware import Device, find_device
from qdpo.libraries import quiet_libraries
from qdpo.training import run_folder, trackers
from qdpo.training.stages.data import prepare_data
from qdpo.training.stages.model import load_policy, run_checks
from qdpo.training.stages.reference import reference_pass
from qdpo.training.stages.result import finish
from qdpo.training.stages.state import Run
from qdpo.training.stages.trainer import build_trainer, build_trl_trainer

if TYPE_CHECKING:
    from qdpo.training.losses import LossSettings
    from qdpo.training.trainer import DpoTrainer
    from qdpo.training.trl_engine import TrlTrainer


def train(resolved: Resolved, folder: Path, *, preset: str, command: str, resume: bool = False) -> Path:
    """Train as configured.

    Args:
        resolved: the configuration.
        folder: the run directory; for a new run, empty or absent.
        preset: what the user called the configuration.
        command: the command line, for the card.
        resume: continue from the newest whole checkpoint in `folder`.

    Returns:
        The run directory.

    Raises:
        QdpoError: of many kinds, each explained.
    """
    begin = time.monotonic()
    config = resolved.config
    loss = loss_settings(config)
    trackers.check_installed(config.train.report_to)
    quiet_libraries()
    device = find_device()
    if config.engine == "trl":
        from qdpo.training import trl_engine

        trl_engine.check(config, device)
    run = Run(folder, config, device)
    if resume:
        reopen(run)
    else:
        run_folder.create(folder, resolved)
        run.record = {
            "schema": 1,
            "qdpo": __version__,
            "name": config.name,
            "preset": preset,
            "created": run_folder.now(),
            "command": command,
            "seed": config.train.seed,
        }
    console.say(f"run directory: {folder}")
    run.save(state="running", versions=run_folder.versions(), hardware=describe(device), result=None)

    tokenizer, data = prepare_data(run)
    policy, engine = load_policy(run)
    run_checks(run, engine, policy, tokenizer, data, loss)
    trainer: DpoTrainer | TrlTrainer
    if config.engine == "trl":
        trainer, terminal = build_trl_trainer(run, policy, tokenizer, data)
    else:
        train_split, heldout = reference_pass(run, engine, policy, data)
        trainer, terminal = build_trainer(run, policy, tokenizer, train_split, heldout, data, loss)
    with contextlib.closing(terminal):
        trainer.train(resume_from_checkpoint=str(run.resume) if run.resume else None)
    finish(run, trainer, policy, tokenizer, seconds=time.monotonic() - begin)
    return folder


def loss_settings(config: RunConfig) -> LossSettings:
    """The loss and its constants, checked together.

    Raises:
        ConfigError: a combination that has no meaning.
    """
    from qdpo.training.losses import LossSettings

    section = config.loss.model_dump()
    section["loss_type"] = tuple(section["loss_type"])
    section["loss_weights"] = tuple(section["loss_weights"]) if section["loss_weights"] else None
    try:
        return LossSettings(**section)
    except ValueError as error:
        raise ConfigError(f"loss: {error}") from error


def describe(device: Device) -> dict[str, Any]:
    """The device, for run.json."""
    return {
        "kind": device.kind,
        "name": device.name,
        "capability": list(device.capability) if device.capability else None,
        "memory_bytes": device.memory,
    }


def reopen(run: Run) -> None:
    """Find where an interrupted run stands."""
    from qdpo.training.checkpoint import newest_whole

    sweep(run.folder)
    run.record = run_folder.read_record(run.folder)
    run.resume = newest_whole(run.folder / "checkpoints")
    where = run.resume.name if run.resume else "the beginning: no checkpoint was written yet"
    console.note(f"resuming from {where}")
