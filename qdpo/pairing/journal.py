"""A file of JSON lines that only grows, held by one process: a line is on the disk when `append` returns.

Killed at any moment, it holds whole lines and at most a part of one more, which is cut off when it is opened again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from qdpo import console
from qdpo.errors import BusyError, DataError
from qdpo.files import explained, sync_folder
from qdpo.run.lock import HELD, NOT_SUPPORTED, is_at


class Journal:
    """An open file; use `opened`. Until something is appended, or `mend`, it is as it was.

    Attributes:
        path: the file.
        rows: its lines, those that were appended included.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor
        self.rows: list[dict[str, Any]] = []
        self._torn = 0
        self._unended = False

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path) -> Iterator[Self]:
        """Open a file, made if it is not there, for this process alone; one that stays empty is removed again.

        Raises:
            BusyError: another process has it open.
            DataError: it holds something else.
            OutputError, DiskError: it cannot be written.
        """
        descriptor = _held(path)
        try:
            journal = cls(path, descriptor)
            with explained(path):
                journal._read()
                sync_folder(path.parent)
            yield journal
        finally:
            if os.fstat(descriptor).st_size == 0:
                path.unlink(missing_ok=True)
            os.close(descriptor)

    def _read(self) -> None:
        lines = self.path.read_bytes().split(b"\n")
        rest = lines.pop()
        self.rows += [self._row(line, number) for number, line in enumerate(lines, 1)]
        if not rest:
            return
        try:
            self.rows.append(self._row(rest, len(lines) + 1))
            self._unended = True  # an editor may have taken the last line's end
        except DataError:
            if not rest.startswith(b"{"):
                raise
            self._torn = len(rest)

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{self.path}:{number} is not JSON: {error}", "repair it, or choose another --out"
            ) from None
        if not isinstance(found, dict):
            raise DataError(f"{self.path}:{number} is not an object", "repair it, or choose another --out")
        return found

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write lines, all of them or none.

        Raises:
            DiskError: the disk is full, or writing failed.
        """
        self.mend()
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._write(lines.encode("utf-8"))
        self.rows += rows

    def mend(self) -> None:
        """Cut off the part of a line that a kill has left, or give a whole last line its end.

        Raises:
            DiskError: the disk is full, or writing failed.
        """
        if self._torn:
            with explained(self.path):
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - self._torn)
            console.note(f"{self.path} ended in the middle of a line (its writer was killed); the part is cut off")
        elif self._unended:
            self._write(b"\n")
        self._torn, self._unended = 0, False

    def _write(self, data: bytes) -> None:
        before = os.fstat(self._descriptor).st_size
        with explained(self.path, needed=len(data)):
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(self._descriptor, view) :]
                os.fsync(self._descriptor)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, before)
                raise


def _held(path: Path) -> int:
    """The descriptor of a file, made if it is not there, under the operating system's lock where there are such.

    Raises:
        BusyError: another process has it.
        OutputError: it cannot be written.
    """
    while True:
        with contextlib.ExitStack() as otherwise, explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            otherwise.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in HELD:
                    raise BusyError(
                        f"another process writes {path}", "wait for it to end, or choose another --out"
                    ) from None
                if error.errno not in NOT_SUPPORTED:
                    raise
            # whoever held it before may have removed it, empty, after it was opened here
            if is_at(descriptor, path):
                otherwise.pop_all()
                return descriptor
