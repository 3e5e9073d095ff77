"""Data that comes through a pipe: kept in a temporary file, for it can be read only once, and a run reads twice.

`qdpo data <(zcat x.gz)` and `... | qdpo data /dev/stdin` give such a path. The file ends with the process.
"""

from __future__ import annotations

import os
import select
import stat
import tempfile
import time
from pathlib import Path
from typing import IO

from qdpo import console
from qdpo.config.schema import DataSection
from qdpo.data.files.kinds import look
from qdpo.errors import DataError, DiskError, InputMissingError, UsageError
from qdpo.files import explained, free_bytes

WRITER = 5.0
"""Seconds in which somebody must open a pipe for writing."""
SILENCE = 60.0
"""Seconds that whoever writes may be silent."""
LARGEST = 16 << 30
"""Bytes that are taken from a pipe."""
PAUSE = 100
"""Milliseconds between two looks at a pipe in which nothing happens."""
LEFT_FREE = 1 << 30
"""Bytes of the disk that stay free."""
CHUNK = 1 << 20
LOOKED_AT = 1 << 20
"""Bytes after which it is known whether what comes is data."""

_kept: dict[tuple[int, int], IO[bytes]] = {}


def is_pipe(path: Path) -> bool:
    """Whether a path is that of a pipe."""
    try:
        return stat.S_ISFIFO(path.stat().st_mode)
    except OSError:
        return False


def refuse(config: DataSection) -> None:
    """Refuse pipes where data is read again later: by a run that is resumed, evaluated or exported.

    Raises:
        UsageError: one of the datasets is a pipe.
    """
    for name in filter(None, [config.name, config.eval_name, *config.mixture, *config.contamination]):
        if is_pipe(Path(name).expanduser()):
            raise UsageError(
                f"{name} is a pipe, and a run reads its data again when it is resumed",
                "write it to a file first: COMMAND > pairs.jsonl (.gz, .bz2, .xz and .zst are read as they are)",
            )


def spooled(path: Path) -> Path:
    """The temporary file that holds what comes through a pipe; read to its end the first time.

    Raises:
        InputMissingError: it may not be read, nobody writes to it, or whoever does has gone silent.
        DataError: it brings nothing, no data, or no end.
        DiskError: there is no room for it.
    """
    found = path.stat()
    key = found.st_dev, found.st_ino
    if key not in _kept:
        folder = Path(tempfile.gettempdir())
        with explained(folder):
            # it has no name, so that nothing is left of it however the process ends
            file = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            total = _copy(path, file, folder)
        except BaseException:
            file.close()
            raise
        console.note(f"{path} is a pipe: its {total:,} bytes are kept in a file without a name in {folder}")
        _kept[key] = file
    return _path_of(_kept[key])


def _path_of(file: IO[bytes]) -> Path:
    return Path(f"/dev/fd/{file.fileno()}")


def _copy(path: Path, file: IO[bytes], folder: Path) -> int:
    total, is_known = 0, False
    try:
        pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise InputMissingError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    try:
        while chunk := _next(pipe, path, begun=total > 0):
            with explained(folder):
                file.write(chunk)
                file.flush()
            total += len(chunk)
            if total >= LOOKED_AT and not is_known:
                # what is no data may have no end
                look(_path_of(file), str(path))
                is_known = True
            _require_room(path, folder, total)
    finally:
        os.close(pipe)
    if not total:
        raise DataError(f"nothing came through the pipe {path}", "check the command that writes to it")
    return total


def _require_room(path: Path, folder: Path, total: int) -> None:
    if total > LARGEST:
        raise DataError(f"more than {LARGEST >> 30} GiB came through the pipe {path}", "write it to a file first")
    if free_bytes(folder) < LEFT_FREE:
        raise DiskError(
            f"{folder} has less than {LEFT_FREE >> 30} GiB left for what comes through the pipe {path}",
            "write it to a file elsewhere first, or set TMPDIR",
        )


def _next(pipe: int, path: Path, *, begun: bool) -> bytes:
    """The next bytes, empty at the end.

    Args:
        pipe: opened without blocking.
        path: for messages.
        begun: whether some came already.
    """
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    since = time.monotonic()
    while True:
        try:
            chunk = os.read(pipe, CHUNK)
        except BlockingIOError:
            # somebody has it open for writing, and says nothing
            if time.monotonic() - since > SILENCE:
                raise InputMissingError(
                    f"nothing came through the pipe {path} for {SILENCE:g} seconds",
                    "write to a file first what takes so long, and give that",
                ) from None
        else:
            # without a writer there is nothing to read either before one has opened the pipe
            if chunk or begun or any(event & select.POLLHUP for _, event in poll.poll(0)):
                return chunk
            if time.monotonic() - since > WRITER:
                raise InputMissingError(
                    f"nobody writes to the pipe {path}", "give a file, or start what writes to it first"
                )
        poll.poll(PAUSE)
