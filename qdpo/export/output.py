"""The place an export is written to: whole or not at all, and never over somebody else's files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qdpo import __version__
from qdpo.console import note, warn
from qdpo.errors import DiskError, OutputError
from qdpo.files import (
    HEADROOM,
    MANIFEST,
    free_bytes,
    manifest_problems,
    staged_folder,
    sweep_abandoned,
    write_json,
)

RECORD = "export.json"
ADDED_LATER = {"verify.json", "README.md"}
"""Files that qdpo adds to an export once it is scored; its manifest does not list them."""

SOURCE = ("run", "base", "adapter_sha256", "merge_base", "quantization", "rounding")
"""Entries of export.json that say what an export was made from."""

SPARE_BYTES = 64 << 20
"""Room for tokenizer, configs and the file system's own needs beside the weights."""


@contextlib.contextmanager
def export_folder(final: Path, needed: int, record: dict[str, Any]) -> Iterator[Path]:
    """A staging folder that becomes `final` when the export is whole.

    Args:
        final: where the export appears; may hold an earlier export, which is then replaced in one step.
        needed: bytes that will be written, known before the first one is.
        record: what `export.json` says about the export.

    Raises:
        OutputError: `final` holds something that is not an export of qdpo.
        DiskError: the disk has less room than needed.
    """
    _check_ours(final)
    sweep_abandoned(final.parent, final.name)
    wanted = max(needed + SPARE_BYTES, int(HEADROOM * needed))
    if (free := free_bytes(final)) < wanted:
        raise DiskError(
            f"{final} needs {wanted:,} bytes, {free:,} are free",
            "free some space, or choose another disk with --out",
        )
    with staged_folder(final, replace=True) as staging:
        yield staging
        if lost := sorted(_listed(final) - {path.name for path in staging.iterdir()}):
            note(f"the earlier export in {final} is replaced; gone are {', '.join(lost)}")
        write_json(staging / RECORD, stamped() | record)


def stamped() -> dict[str, Any]:
    """What export.json and verify.json begin with."""
    return {"schema": 1, "qdpo": __version__, "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def link_or_copy(source: Path, target: Path) -> None:
    """Put a finished file into another folder, without a second copy where the file system allows it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def kept_files(final: Path, record: dict[str, Any]) -> dict[str, str]:
    """GGUF files of an earlier export that stay beside those of `record`: file name -> type.

    Raises:
        OutputError: they were made from another merge, and would be lost.
    """
    if not (final / RECORD).is_file():
        return {}
    earlier = json.loads((final / RECORD).read_text())
    others = {name: kind for name, kind in earlier.get("files", {}).items() if name not in record["files"]}
    if others and any(earlier.get(key) != record[key] for key in SOURCE):
        raise OutputError(
            f"{final} holds {', '.join(others)}, merged into the {earlier.get('merge_base')} base of run "
            f"{earlier.get('run')!r}; this export is of another merge and would delete them",
            "choose another --out, or remove the folder",
        )
    damaged = {problem.split(" ")[0] for problem in manifest_problems(final)}
    for name in others.keys() & damaged:
        warn(f"{final / name} is damaged and is left out of the new export")
    return {name: kind for name, kind in others.items() if name not in damaged}


def _listed(final: Path) -> set[str]:
    """Names that the manifest of an earlier export has; none without one."""
    try:
        return set(json.loads((final / MANIFEST).read_text())["files"]) - {RECORD}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _check_ours(final: Path) -> None:
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        return
    if not (final / RECORD).is_file():
        raise OutputError(
            f"{final} exists and is not an export of qdpo (it has no {RECORD})", "choose another --out, or remove it"
        )
    strangers = [p.partition(" is not in")[0] for p in manifest_problems(final) if p.endswith("is not in the manifest")]
    if strangers := sorted(set(strangers) - ADDED_LATER):
        raise OutputError(
            f"{final} has {len(strangers)} files that this export would delete and did not write "
            f"(first: {strangers[0]})",
            "move them away, or choose another --out",
        )
