"""Training from Python, and what `qdpo train` is a shell over."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qdpo import console
from qdpo.api.process import borrowed
from qdpo.errors import ConfigError, QdpoError, UnavailableError, UsageError
from qdpo.paths import output_path
from qdpo.progress import clock
from qdpo.run import lock

if TYPE_CHECKING:
    from qdpo.api.config import Config, Overrides
    from qdpo.api.run import Run
    from qdpo.training.signals import Stop


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop (Ctrl-C, the kernel's interrupt, SIGTERM), and has stopped.

    It is a `KeyboardInterrupt`, so that `except Exception` does not take it for a failed run and a notebook does not go
    on with the cells below.

    Attributes:
        run: the run as far as it came; `qdpo.train(run_dir=run.path, resume=True)` goes on where it was.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(f"{run.path} was stopped; to go on: qdpo.train(run_dir={str(run.path)!r}, resume=True)")
        self.run = run


@dataclass(frozen=True)
class Job:
    """A run that was asked for: settled and permitted, and nothing written yet.

    Attributes:
        config: its configuration.
        folder: its directory.
        preset: what the user called the configuration.
        resume: whether it goes on from what is in the directory.
        allow_changes: what may have changed since it began although it changes the result, by key.
        mirror: folder of a second copy.
    """

    config: Config
    folder: Path
    preset: str
    resume: bool
    allow_changes: Sequence[str]
    mirror: Path | None

    def do(self, stop: Stop, command: str) -> Path:
        """Train, holding the directory's lock; returns the directory. A start that fails leaves none.

        Args:
            stop: says when to stop.
            command: what the card says of how to repeat it.
        """
        with _together(self.folder, self.resume) as folder, lock.locked(folder):
            from qdpo.run.folder import remove_start
            from qdpo.training.run import train

            try:
                return train(
                    self.config.resolved,
                    folder,
                    preset=self.preset,
                    command=command,
                    resume=self.resume,
                    allow_changes=self.allow_changes,
                    stop=stop,
                    mirror=self.mirror,
                )
            except QdpoError:
                if not self.resume:
                    remove_start(folder)
                raise


def train(
    config: str | os.PathLike[str] | Config | None = None,
    overrides: Overrides = None,
    *,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    allow_changes: Sequence[str] = (),
    auto: bool = False,
    allow_cpu: bool = False,
    trust_remote_code: bool = False,
    mirror: str | os.PathLike[str] | None = None,
) -> Run:
    """Fine-tune a model by DPO on preference pairs.

    Progress is shown as `qdpo train` shows it, in a notebook as a table that redraws. Ctrl-C ends the step, saves and
    raises `Interrupted`; a second one stops at once.

    Args:
        config: a preset's name, a YAML file, or a `Config`; with `resume`, None takes the run's own.
        overrides: settings by their dotted key: `{"train.max_steps": 50}`.
        run_dir: where the run is written; None takes `runs/NAME`, numbered when it is taken.
        resume: go on with the run in `run_dir`, as it began or changed by overrides.
        allow_changes: with `resume`, changes to accept that change the result, such as `["train.max_steps"]`.
        auto: choose token budgets, checkpointing and optimizer for the card found here.
        allow_cpu: train on the CPU where a preset that is made for a GPU finds none.
        trust_remote_code: run Python code that comes with the base; `model.revision` must be a commit.
        mirror: folder of a second copy of the run, on a mounted drive, say.

    Returns:
        The finished run.

    Raises:
        QdpoError: something is wrong; the message says what, where and the way out.
        Interrupted: it was asked to stop, and did.
    """
    from qdpo.api.run import Run
    from qdpo.training.signals import Stopped, insisting, watch

    with borrowed(), watch(ends_process=False) as stop:
        folder = None
        try:
            with insisting(stop):
                job = prepare(
                    config,
                    overrides,
                    run_dir=run_dir,
                    resume=resume,
                    allow_changes=allow_changes,
                    auto=auto,
                    allow_cpu=allow_cpu,
                    trust_remote_code=trust_remote_code,
                    mirror=mirror,
                )
                folder = job.folder
                job.do(stop, _command(job))
        except Stopped:
            if folder is None:
                raise KeyboardInterrupt from None
        if stop.signal is None:
            return Run(folder)
    raise Interrupted(Run(folder)) from None


def prepare(
    config: str | os.PathLike[str] | Config | None,
    overrides: Overrides,
    *,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    allow_changes: Sequence[str] = (),
    auto: bool = False,
    allow_cpu: bool = False,
    trust_remote_code: bool = False,
    mirror: str | os.PathLike[str] | None = None,
    model: str | None = None,
    data: str | None = None,
) -> Job:
    """Settle what will be trained, where, and whether that is possible.

    Args:
        model: another base than the configuration's; `data` likewise. See `train` for the others.
    """
    wanted = None if run_dir is None else os.fspath(run_dir)
    if wanted is not None:
        # before anything that takes long to import
        lock.refuse_if_busy(output_path(wanted, "--run-dir"))
    from qdpo import cuda
    from qdpo.api.config import settled, texts_of
    from qdpo.config.replace import elsewhere
    from qdpo.data.files import pipes
    from qdpo.run import folder as run_folder

    copy = None if mirror is None else output_path(os.fspath(mirror), "--mirror")
    if resume and auto:
        raise UsageError("--auto is for a new run", "a resumed run keeps the settings that it began with")
    if allow_changes and not resume:
        raise UsageError("--allow-change is for --resume", "a new run may be configured in any way")
    if resume and wanted is None:
        raise UsageError("--resume needs --run-dir", "name the run's folder: --run-dir runs/NAME --resume")
    changes = texts_of(overrides)
    changes += ["model.trust_remote_code=true"] if trust_remote_code else []
    if resume and wanted is not None:
        folder = run_folder.existing(wanted)
        own = folder / run_folder.CONFIG if config is None else config
        asked = settled(own, [*elsewhere(model, data), *changes])
        preset = str(folder) if config is None else asked.preset
    elif config is None:
        raise UsageError("which preset?", "qdpo train --preset quickstart; `qdpo presets` lists them")
    else:
        asked = settled(config, changes, model=model, data=data)
        preset = asked.preset
        folder = run_folder.choose(wanted, asked.name)
        for reset in asked.resets:
            console.note(str(reset))
    pipes.refuse(asked.data)
    if not allow_cpu:
        try:
            cuda.check_gpu(asked)
        except UnavailableError as error:
            raise _with_time_on_the_cpu(error, asked) from error
    if auto:
        from qdpo.planner.auto import choose_here

        asked = asked.change(choose_here(asked))
    if asked.model.trust_remote_code and not trust_remote_code:
        raise ConfigError(
            f"model.trust_remote_code is set ({asked.origins['model.trust_remote_code']}), and a file cannot allow "
            "that code of others is run",
            "read the code at model.revision, then give --trust-remote-code on the command line; or set it to false",
        )
    return Job(asked, folder, preset, resume, allow_changes, copy)


def _with_time_on_the_cpu(error: UnavailableError, config: Config) -> UnavailableError:
    """The refusal of a CPU, with how long the run would take there where the base's shape is known."""
    from qdpo.api.planning import plan

    with contextlib.suppress(QdpoError):
        found = plan(config, gpu="cpu")
        if found.duration.steps is not None:
            time = f"about {clock(found.duration.seconds)} by estimate"
            return UnavailableError(error.message, f"{error.hint}; the whole run would take {time}")
    return error


def _command(job: Job) -> str:
    """The command line that does the same, for the card."""
    words = ["qdpo", "train", "--run-dir", str(job.folder)]
    words += ["--resume"] if job.resume else ["--preset", job.preset]
    words += [word for text in job.config.overrides for word in ("--set", text)]
    words += [word for key in job.allow_changes for word in ("--allow-change", key)]
    return shlex.join(words)


def _together(folder: Path, resume: bool) -> AbstractContextManager[Path]:
    """The run directory, shared with the processes that a launcher has started beside this one, if it has."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        # torch is not imported for it: another run in the same folder is to be told at once
        return contextlib.nullcontext(folder)
    from qdpo.training import parallel

    parallel.begin()
    return parallel.own_folder(folder, resume=resume)
