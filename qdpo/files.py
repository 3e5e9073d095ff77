"""Writing files so that they are whole or absent, and knowing later that they still are.

A folder is written under a staging name beside its final place, every file is hashed into `manifest.json` and synced
to disk, and one rename makes it appear. What a crash leaves behind is a staging folder, which `sweep` removes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from qdpo.errors import DiskError, InputMissingError, OutputError, QdpoError

MANIFEST = "manifest.json"
STAGING_PREFIX = ".staging-"
CHUNK_BYTES = 1 << 20

HEADROOM = 1.2
"""How much more than what will be written must be free before anything long begins."""

_staging: list[Path] = []
"""Folders that this process is writing."""

NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
"""What network file systems (a mounted Drive) answer that cannot sync a folder; their files are synced all the same."""


def sha256_file(path: Path, advance: Callable[[int], object] = lambda nbytes: None) -> str:
    """The SHA-256 of a file's bytes, in hex; `advance` is told of each piece's size."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace a file in one step: after a crash it holds the old content or the new one, never a part.

    Raises:
        DiskError: when the disk is full or writing fails.
        OutputError: when the folder cannot be written to.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f"{STAGING_PREFIX}{path.name}-{os.getpid()}")
    with explained(path, needed=len(data)):
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def append(path: Path, content: str | bytes) -> None:
    """Write at the end of a file; on the disk when this returns. A crash may leave a part of it.

    Raises:
        DiskError: when the disk is full or writing fails.
        OutputError: when the file cannot be written to.
    """
    data = content.encode() if isinstance(content, str) else content
    with explained(path, needed=len(data)), path.open("ab") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step, readable by people, without NaN (which is not JSON)."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputMissingError: the file is missing or holds something else.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise InputMissingError(f"{path} is missing") from error
    except OSError as error:
        raise InputMissingError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise InputMissingError(f"{path} cannot be read: it is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputMissingError(f"{path} should hold one JSON object, it holds a {type(value).__name__}")
    return value


def sync_folder(folder: Path) -> None:
    """Make the names in a folder (a rename, a new file) survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explained(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn a failure to write to `path` into an error that says what to do.

    Args:
        path: what is being written.
        needed: bytes that the write needs, where known.
    """
    try:
        yield
    except QdpoError:
        raise
    except Exception as error:
        cause = os_error_of(error)
        if cause is None:
            raise
        raise explain_os_error(cause, path, needed) from error


def os_error_of(error: Exception) -> OSError | None:
    """The operating system's error behind an exception, if there is one.

    Libraries written in Rust (safetensors, tokenizers) raise exceptions of their own that end in `(os error 28)`.
    """
    if isinstance(error, OSError):
        return error
    code = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else None


def explain_os_error(error: OSError, path: Path, needed: int | None = None) -> QdpoError:
    """The `QdpoError` for an `OSError` that happened while writing to `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = free_bytes(path)
        wanted = f"{needed:,} bytes needed, " if needed is not None else ""
        return DiskError(
            f"the disk is full: cannot write {path} ({wanted}{free:,} bytes free)",
            "free some space, or choose another disk, and run the same command again",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(f"cannot write {path}: {error.strerror}", "choose a folder that you may write to")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG):
        return OutputError(f"cannot write {path}: {error.strerror}", "choose another path")
    return DiskError(f"writing {path} failed: {error.strerror or error}")


def free_bytes(path: Path) -> int:
    """Free bytes on the disk that holds `path` (which need not exist yet)."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; 0 when there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def require_space(path: Path, needed: int, hint: str) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        path: where it will be written.
        needed: bytes that will be written.
        hint: the way out.

    Raises:
        DiskError: less than `HEADROOM` times as much is free.
    """
    wanted, free = int(HEADROOM * needed), free_bytes(path)
    if free < wanted:
        raise DiskError(f"{path} needs {wanted:,} bytes ({HEADROOM} x {needed:,}), {free:,} bytes are free", hint)


@contextlib.contextmanager
def staged_folder(
    final: Path, *, replace: bool = False, needed: int | None = None, manifest: bool = True
) -> Iterator[Path]:
    """Build a folder that appears at `final` whole, with a manifest, or not at all.

    Yields:
        The staging folder to write into.

    Args:
        final: where the folder appears when the block ends without an exception.
        replace: allow `final` to exist; it is replaced in the same moment.
        needed: bytes that the folder will have, where known.
        manifest: write one; a copy of a folder has what the folder has.

    Raises:
        OutputError: `final` exists and `replace` is false, or the place cannot be written to.
        DiskError: the disk is full.
    """
    if final.exists() and not replace:
        raise OutputError(f"{final} exists already", "choose another folder, or remove it")
    with explained(final, needed):
        final.parent.mkdir(parents=True, exist_ok=True)
        staging = final.with_name(f"{STAGING_PREFIX}{final.name}-{os.getpid()}")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        _staging.append(staging)
        # The staging folder goes before a failure is explained, so that the free bytes in the message are those
        # that the next attempt finds.
        try:
            with _held(staging):
                yield staging
                if manifest:
                    write_manifest(staging)
                _sync_tree(staging)
                _swap_in(staging, final)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        finally:
            _staging.remove(staging)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the operating system's lock on a folder, which ends with this process; where there are none, nothing."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[None]:
    """A folder that is there inside the block; named like a staging folder, it is swept when this process is killed."""
    folder.mkdir(parents=True)
    _staging.append(folder)
    try:
        with _held(folder):
            yield
    finally:
        _staging.remove(folder)
        shutil.rmtree(folder, ignore_errors=True)


def drop_staging() -> None:
    """Remove what this process has begun to write: it ends now, whatever its threads are doing."""
    for _ in range(3):  # they may still be writing
        for folder in _staging:
            shutil.rmtree(folder, ignore_errors=True)


def sweep_abandoned(folder: Path, name: str = "") -> list[str]:
    """Remove staging folders that processes which are gone have left in a folder; put back what was moved aside.

    Args:
        folder: where they stand beside their final places.
        name: of the final place; empty for all.

    Returns:
        The names of what was removed or put back.
    """
    swept, busy = [], set()
    for path in sorted(folder.glob(f"{STAGING_PREFIX}{name or '*'}-*")):
        final, _, process = path.name.removeprefix(STAGING_PREFIX).rpartition("-")
        if not path.is_dir() or not process.isdigit():
            continue
        if _is_abandoned(path, int(process)):
            shutil.rmtree(path, ignore_errors=True)
            swept.append(path.name)
        else:
            busy.add(final)
    for old in sorted(folder.glob(f"{STAGING_PREFIX}old-{name or '*'}")):
        original = folder / old.name.removeprefix(f"{STAGING_PREFIX}old-")
        if original.name in busy:
            continue
        if original.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(original)
        swept.append(old.name)
    return swept


def _is_abandoned(staging: Path, process: int) -> bool:
    """Whether the process that a staging folder is named by is gone.

    Another process may have its number by now, and a folder may be another machine's: nobody holds the lock of one that
    was left, and where a file system has no locks it must also have been left for an hour.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(staging, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            newest = max((path.stat().st_mtime for path in staging.rglob("*")), default=staging.stat().st_mtime)
            left = time.time() - newest > 3600
            return error.errno not in (errno.EWOULDBLOCK, errno.EACCES) and left and not is_running(process)
        finally:
            os.close(descriptor)
        return True
    return False


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(folder)


def _swap_in(staging: Path, final: Path) -> None:
    if final.exists():
        # A folder cannot replace a non-empty folder in one rename, so the old one steps aside first. A crash between
        # the two renames leaves both copies whole; `sweep` puts the old one back when the new one is not there.
        aside = final.with_name(f"{STAGING_PREFIX}old-{final.name}")
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
        staging.rename(final)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        staging.rename(final)
    sync_folder(final.parent)


def is_running(process: int) -> bool:
    """Whether a process of this machine, known by the number that a lock or a staging name bears, still runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def sweep(folder: Path) -> list[str]:
    """Remove what interrupted writes left in a folder; returns the names that were removed or put back."""
    swept = []
    for path in sorted(folder.glob(f"{STAGING_PREFIX}*")):
        original = folder / path.name.removeprefix(f"{STAGING_PREFIX}old-")
        if path.name.startswith(f"{STAGING_PREFIX}old-") and not original.exists():
            path.rename(original)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        swept.append(path.name)
    return swept


def write_manifest(folder: Path) -> None:
    """Write `manifest.json`: size in bytes and SHA-256 of every file below the folder."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    write_json(folder / MANIFEST, {"schema": 1, "files": files})


def manifest_problems(folder: Path, sha256: Callable[[Path], str] = sha256_file) -> list[str]:
    """What is wrong with a folder that should match its manifest; an empty list means that it is whole.

    Args:
        folder: the folder.
        sha256: gives the hash of a file.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["schema"] != 1:
            return [f"{MANIFEST} has schema {manifest['schema']}, this version of qdpo knows 1"]
        listed = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST} cannot be read: {error}"]
    problems = []
    for name, (size, digest) in listed.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != size:
            problems.append(f"{name} has {path.stat().st_size:,} bytes, the manifest says {size:,}")
        elif sha256(path) != digest:
            problems.append(f"{name} does not match its SHA-256")
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    problems += [f"{name} is not in the manifest" for name in sorted(present - listed.keys())]
    return problems


def digest_of(parts: Sequence[str | bytes]) -> str:
    """One SHA-256 (hex) over several strings, each length-prefixed so that boundaries count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
