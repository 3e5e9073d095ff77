"""The base of a run: where it lies now, and whether it is still the one that was trained on."""

from __future__ import annotations

import os
from pathlib import Path

from qdpo.console import note
from qdpo.errors import InputMissingError, QdpoError
from qdpo.model.source import EMBEDDED, Source, find
from qdpo.model.weights import weights_sha256
from qdpo.run import lock
from qdpo.run.folder import NAME_A_RUN, RECORD, read_record, write_record
from qdpo.run.schema import Base


def base_of(run: Path) -> Source:
    """The files of a run's base; their content is not looked at.

    Raises:
        InputMissingError: they are not where they were, or run.json names none.
        UnavailableError: the hub does not have them, or cannot be reached.
    """
    base = read_record(run).base
    if base.name is None:
        raise InputMissingError(f"{run / RECORD} names no base", NAME_A_RUN)
    if base.folder and (Path(base.folder) / "config.json").is_file():
        return Source(base.name, Path(base.folder), base.revision)
    if base.revision is None and base.name != EMBEDDED:
        raise InputMissingError(
            f"the base of {run} is not at {base.folder or base.name} any more",
            "put it back, or name its new place with --model DIR, which is recognised by the hash of its weights",
        )
    found = find(base.name, base.revision)
    if base.folder:
        note(f"the base is not at {base.folder} any more; using {found.folder}")
    return found


def check_base(source: Source, base: Base) -> None:
    """Compare a base with the one that a run was trained on.

    Raises:
        InputMissingError: it is another.
    """
    if base.weights_sha256 is not None and weights_sha256(source) != base.weights_sha256:
        raise InputMissingError(
            f"the weights in {source.folder} are not those that were trained on (their SHA-256 differs from that in "
            f"{RECORD})",
            "give the base back its old weights; a merge into other weights is another model",
        )


def move_base(run: Path, place: str) -> None:
    """Let a run know where its base lies now.

    Args:
        run: the run directory, whose run.json gets the new place.
        place: a folder, or a name on the hub.

    Raises:
        InputMissingError: there is no base, or another one.
        BusyError: a process trains in the directory.
        QdpoError: run.json cannot be written.
    """
    record = read_record(run)
    if record.base.weights_sha256 is None:
        raise QdpoError(f"{run / RECORD} has no hash of the base's weights to recognise it by", "put it back instead")
    found = find(place)
    check_base(found, record.base)
    lock.refuse_if_busy(run)
    folder = os.path.abspath(found.folder)
    if folder != record.base.folder:
        record.base = record.base.model_copy(update={"folder": folder})
        write_record(run, record)
        note(f"the base of {run} is at {folder} now")
