"""One process at a time in a run directory.

The lock is the operating system's (flock), which ends with the process that holds it, however it ends. The file says
who holds it, for the message, for folders that several machines share, and for file systems without locks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from qdpo import console
from qdpo.errors import BusyError, UnavailableError
from qdpo.files import explained, is_running

FILE = ".lock"
HELD = (errno.EWOULDBLOCK, errno.EACCES)
NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        pid: the process.
        host: the machine's name.
        boot: changes whenever the machine starts; empty where it is not known.
        asked: whether it was asked to stop, see `ask_to_stop`.
    """

    pid: int
    host: str
    boot: str
    asked: bool = False

    @classmethod
    def this_process(cls) -> Holder:
        """What a lock says of this process."""
        boot = BOOT_ID.read_text().strip() if BOOT_ID.is_file() else ""
        return cls(os.getpid(), platform.node(), boot)

    @classmethod
    def parse(cls, text: str) -> Holder | None:
        """The holder that a lock file names; None where a crash left no whole name."""
        try:
            content = json.loads(text)
            return cls(int(content["pid"]), str(content["host"]), str(content["boot"]), content.get("asked") is True)
        except (ValueError, KeyError, TypeError):
            return None

    def is_elsewhere(self) -> bool:
        """Whether it runs on another machine, where nobody here can look."""
        return self.host != Holder.this_process().host

    def is_alive(self) -> bool:
        """Whether the process still runs on this machine, since the machine was last started."""
        return self.boot == Holder.this_process().boot and is_running(self.pid)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run directory's lock; the directory is made if it is not there.

    Raises:
        BusyError: another process holds it.
        OutputError: the directory cannot be written to.
    """
    path = folder / FILE
    with explained(path):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _take(path)
    try:
        yield
    finally:
        # Removed while it is still held: whoever opened it meanwhile sees that the name is gone, and tries again.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def refuse_if_busy(folder: Path) -> None:
    """Look whether another process works in a folder, without touching it.

    Raises:
        BusyError: one does.
    """
    path = folder / FILE
    if path.is_file():
        with path.open("rb") as stream:
            _lock(stream.fileno(), path)


def holder(folder: Path) -> Holder | None:
    """Who works in a folder now; None for nobody. Whether another machine's process still runs is not known."""
    with contextlib.suppress(OSError):
        found = Holder.parse((folder / FILE).read_text("utf-8", "replace"))
        # the lock is not tried where nobody can hold it: whoever takes it at that moment would be refused
        if found is None or found.is_elsewhere():
            return found
        if found.is_alive():
            try:
                refuse_if_busy(folder)
            except BusyError:
                return found
    return None


def ask_to_stop(folder: Path) -> bool:
    """Ask the process that works in a folder to stop, as a first Ctrl-C does; a second time nothing is sent, because
    a second signal would end it at once.

    Returns:
        Whether it was asked now; False when it had been asked before.

    Raises:
        UnavailableError: nobody works there, or a process that cannot be reached from here.
    """
    found = holder(folder)
    if found is None:
        raise UnavailableError(f"no process works in {folder}", "there is nothing to stop")
    if found.is_elsewhere():
        raise UnavailableError(f"process {found.pid} works in {folder} on {found.host}", "stop it on that machine")
    if found.asked:
        return False
    path = folder / FILE
    try:
        before = path.stat().st_size
        with path.open("rb+") as stream:
            # as long as before, so that nobody ever reads a part
            stream.write(json.dumps(asdict(replace(found, asked=True))).encode().ljust(before))
        os.kill(found.pid, signal.SIGTERM)
    except OSError as error:
        raise UnavailableError(f"process {found.pid} cannot be asked to stop: {error}", "stop it yourself") from error
    return True


def _take(path: Path) -> int:
    """The descriptor of the lock file, which holds the lock until it is closed."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        with contextlib.ExitStack() as otherwise:
            otherwise.callback(os.close, descriptor)
            left = _lock(descriptor, path)
            if not is_at(descriptor, path):
                continue
            if left is not None:
                console.note(
                    f"the lock of process {left.pid}, which is gone, was left in {path.parent}; taking it over"
                )
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(Holder.this_process())).encode(), 0)
            otherwise.pop_all()
            return descriptor


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that a path names now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int, path: Path) -> Holder | None:
    """Take the operating system's lock; returns who left the file behind, if anybody did."""
    refused = None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (*HELD, *NOT_SUPPORTED):
            raise
        refused = error.errno
    holder = Holder.parse(os.pread(descriptor, 4096, 0).decode("utf-8", "replace"))
    held = holder is not None and (holder.is_elsewhere() or (refused is not None and holder.is_alive()))
    if refused not in HELD and not held:
        return holder
    who = "another process" if holder is None else f"process {holder.pid}"
    if holder is not None and holder.is_elsewhere():
        raise BusyError(
            f"{who} on {holder.host} works in {path.parent}, or did when it ended",
            f"wait for it; if that machine is gone, remove {path}",
        )
    raise BusyError(f"{who} works in {path.parent}", "wait for it to end, or choose another --run-dir")
