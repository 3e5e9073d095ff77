"""SHA-256 of large files, computed once: remembered by path, size, time of change and inode.

In this process, and under the cache for others: one small file for each file that was hashed, replaced in one step, so
that processes do not get into each other's way. A file that has changed has another size, time or inode, and is hashed
again. One that has changed just now is not remembered: a second change in the same tick of its clock would not show.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from qdpo import console
from qdpo.errors import QdpoError
from qdpo.files import atomic_write, digest_of, sha256_file
from qdpo.paths import cache_folder
from qdpo.progress import Progress

SETTLED_SECONDS = 2.0
"""How long a file must have been left alone: the coarsest time that a file system keeps."""

_known: dict[str, tuple[str, str]] = {}
"""Path -> its mark and its SHA-256."""


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, remembered where it was computed before.

    Raises:
        OSError: the file cannot be read.
    """
    if (known := known_sha256(path)) is not None:
        return known
    mark = mark_of(path)
    with Progress(f"hashing {path.name}", path.stat().st_size) as progress:
        digest = sha256_file(path, progress.advance)
    remember(path, mark, digest)
    return digest


def mark_of(path: Path) -> str:
    """What a file is known by: its real path, size, time of change (ns) and inode."""
    real = path.resolve()
    stat = real.stat()
    return json.dumps([str(real), stat.st_size, stat.st_mtime_ns, stat.st_ino])


def known_sha256(path: Path) -> str | None:
    """The SHA-256 of a file if it is remembered and the file has not changed since."""
    mark, real = mark_of(path), str(path.resolve())
    if real not in _known:
        try:
            entry = json.loads(_entry(real).read_text("utf-8"))
            _known[real] = str(entry["mark"]), str(entry["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
    found, digest = _known[real]
    return digest if found == mark else None


def remember(path: Path, mark: str, digest: str) -> None:
    """Keep what was computed.

    Args:
        path: the file.
        mark: from `mark_of`, taken before it was read.
        digest: its SHA-256.
    """
    real = str(path.resolve())
    if mark != mark_of(path) or time.time() - path.stat().st_mtime < SETTLED_SECONDS:
        return
    _known[real] = mark, digest
    entry = _entry(real)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(entry, json.dumps({"mark": mark, "sha256": digest}) + "\n")
    except (QdpoError, OSError) as error:
        console.note(f"the hash of {path.name} is not kept for the next run: {error}")


def _entry(real: str) -> Path:
    return cache_folder("hashes") / f"{digest_of([os.fsencode(real)])[:40]}.json"
