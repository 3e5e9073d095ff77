"""`--mirror DIR`: a second copy of the run directory, on a disk that may be slow, fail or vanish (a mounted Drive).

Copies are made in a thread, so that training never waits for them. Every folder and file is whole or absent there too,
and what is there is a run directory: `qdpo train --run-dir DIR --resume` continues from it.
"""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

from qdpo import console
from qdpo.errors import DiskError, OutputError, QdpoError, UsageError
from qdpo.files import (
    MANIFEST,
    STAGING_PREFIX,
    atomic_write,
    explained,
    manifest_problems,
    size_of,
    staged_folder,
    sweep,
)
from qdpo.run import lock
from qdpo.run.folder import CHECKPOINTS, EXPORT, RECORD, read_record

NOT_COPIED = (EXPORT, "tensorboard", "wandb", lock.FILE)
"""Exports are made again from the adapter, and are larger than all the rest."""

Signature = tuple[tuple[str, int, int], ...]


class Mirror:
    """Copies a run directory, again whenever it is told that there is something new.

    Args:
        source: the run directory.
        folder: the copy.
    """

    def __init__(self, source: Path, folder: Path) -> None:
        self.source = source
        self.folder = folder
        self.copied: list[str] = []
        self.failures = 0
        self._known: dict[str, Signature] = {}
        self._news = threading.Condition()
        self._pending = False
        self._busy = False
        self._thread: threading.Thread | None = None

    def open(self, identity: str) -> None:
        """Check the place and begin; what does not work now is a mistake, what fails later is a warning.

        Args:
            identity: `id` in run.json: another run's copy is not written over.

        Raises:
            UsageError: one of the two folders lies in the other.
            OutputError: something else is there, or the place cannot be written to.
        """
        source, folder = self.source.resolve(), self.folder.resolve()
        if source == folder or source in folder.parents or folder in source.parents:
            raise UsageError(f"--mirror {self.folder} and the run directory {self.source} lie in each other")
        if self.folder.is_dir() and any(self.folder.iterdir()):
            if _identity(self.folder) != identity:
                raise OutputError(
                    f"--mirror {self.folder} is not empty and no copy of this run",
                    "choose another --mirror; to continue the run that is there: "
                    f"qdpo train --run-dir {self.folder} --resume",
                )
            sweep(self.folder)
        with explained(self.folder):
            (self.folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        atomic_write(self.folder / RECORD, (self.source / RECORD).read_bytes())
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()
        self.update()

    def update(self) -> None:
        """Say that there is something new; returns at once."""
        with self._news:
            self._pending = True
            self._news.notify_all()

    def close(self, seconds: float) -> None:
        """Copy what is there now, and wait for it no longer than that many seconds."""
        self.update()
        begin = time.monotonic()
        with self._news:
            done = self._news.wait_for(lambda: not self._pending and not self._busy, timeout=seconds)
        if not done:
            console.warn(
                f"the mirror {self.folder} was not ready after {time.monotonic() - begin:.0f} s and lacks the latest "
                f"changes; copy them yourself: cp -r {self.source}/. {self.folder}"
            )
        else:
            failed = f", {self.failures} attempts failed" if self.failures else ""
            console.note(f"mirror {self.folder}: {len(self.copied)} checkpoints copied{failed}")

    # ------------------------------------------------------------------------------------------------------ the thread

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._pending)
                self._pending, self._busy = False, True
            try:
                self._copy()
            except Exception as error:  # a broken mount may answer anything; training goes on
                self.failures += 1
                reason = error.message if isinstance(error, QdpoError) else f"{type(error).__name__}: {error}"
                console.warn(f"the mirror {self.folder} failed: {reason}; training goes on, the next save tries again")
            finally:
                with self._news:
                    self._busy = False
                    self._news.notify_all()

    def _copy(self) -> None:
        if not (self.folder / CHECKPOINTS).is_dir():
            # Making it again would write to the disk below a mount that has gone.
            raise DiskError(f"{self.folder} has vanished")
        # run.json says up to which step there are checkpoints: what it says now is written once they are there.
        record = (self.source / RECORD).read_bytes()
        self._copy_checkpoints()
        for entry in sorted(self.source.iterdir()):
            if entry.name.startswith(STAGING_PREFIX) or entry.name in (*NOT_COPIED, CHECKPOINTS, RECORD):
                continue
            self._copy_entry(entry)
        atomic_write(self.folder / RECORD, record)

    def _copy_entry(self, entry: Path) -> None:
        signature = _signature(entry)
        if self._known.get(entry.name) == signature:
            return
        target = self.folder / entry.name
        if entry.is_dir():
            _copy_folder(entry, target)
        else:
            atomic_write(target, entry.read_bytes())
        self._known[entry.name] = signature

    def _copy_checkpoints(self) -> None:
        here, there = self.source / CHECKPOINTS, self.folder / CHECKPOINTS
        sweep(there)
        steps = sorted(path.name for path in here.glob("step-*"))
        for name in steps:
            signature = _signature(here / name)
            if self._known.get(name) == signature and (there / name).is_dir():
                continue
            try:
                _copy_folder(here / name, there / name)
            except (QdpoError, OSError):
                if (here / name).is_dir():
                    raise
                continue  # removed meanwhile, because a newer one is there
            self._known[name] = signature
            self.copied.append(name)
        for old in sorted(path.name for path in there.glob("step-*")):
            if steps and old < steps[-1] and not (here / old).is_dir():
                shutil.rmtree(there / old)


def _copy_folder(source: Path, target: Path) -> None:
    with staged_folder(target, replace=True, needed=size_of(source), manifest=False) as staging:
        for path in sorted(source.rglob("*")):
            copy = staging / path.relative_to(source)
            if path.is_dir():
                copy.mkdir()
            else:
                shutil.copyfile(path, copy)
        if (source / MANIFEST).is_file() and (problems := manifest_problems(staging)):
            raise DiskError(f"the copy of {source} is not what was copied: {problems[0]}")


def _signature(entry: Path) -> Signature:
    """Changes when something in a folder (or a file) does."""
    paths = sorted(entry.rglob("*")) if entry.is_dir() else [entry]
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file())


def _identity(folder: Path) -> str | None:
    try:
        return read_record(folder).id
    except QdpoError:
        return None
