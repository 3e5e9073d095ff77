"""Names that a user gives for what is written: understood once, and refused before anything is made of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from qdpo.errors import OutputError
from qdpo.files import explained

LONGEST_NAME = 255
"""Bytes of one name in a folder, on every file system that is in use."""
LONGEST_PATH = 4095
"""Bytes of a whole path on Linux."""


def cache_folder(part: str) -> Path:
    """`QDPO_CACHE`, or `qdpo` in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`), and a part below it."""
    root = os.environ.get("QDPO_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qdpo"
    return base.expanduser() / part


def output_path(text: str | os.PathLike[str], option: str) -> Path:
    """The path that a user means, `~` expanded.

    Args:
        text: as it was given.
        option: where, for the message.

    Raises:
        OutputError: no folder can have this name.
    """
    given = os.fspath(text)
    why = None
    if not given.strip():
        why = "is empty"
    elif any(ord(character) < 32 or ord(character) == 127 for character in given):
        why = "holds a control character"
    elif any(len(os.fsencode(part)) > LONGEST_NAME for part in given.split("/")):
        why = f"has a name of more than {LONGEST_NAME} bytes"
    elif len(os.fsencode(os.path.abspath(given))) > LONGEST_PATH:
        why = f"is longer than {LONGEST_PATH:,} bytes"
    if why is None:
        try:
            return _without_steps_up(Path(given).expanduser())
        except RuntimeError:
            why = "names a home folder that does not exist"
    raise OutputError(f"{option} {given[:80]!r} {why}", "choose another folder")


def _without_steps_up(path: Path) -> Path:
    """The same place named without `..`: making `a/../b` with its parents would leave a folder `a` behind."""
    if ".." not in path.parts:
        return path
    last = path.name
    return Path(os.path.realpath(path)) if last == ".." else Path(os.path.realpath(path.parent)) / last


def check_file(out: Path, read: Iterable[Path] = ()) -> None:
    """Refuse a place for a file before anything is computed for it.

    Args:
        out: the file that will be written, or written anew.
        read: files that are to stay as they are.

    Raises:
        OutputError: it is one of them, a folder or a link, or it lies in no folder, or in one that takes no file.
        DiskError: the disk is full.
    """
    if out.is_dir():
        raise OutputError(f"{out} is a folder", "give the name of a file")
    if out.is_symlink():
        raise OutputError(f"{out} is a link to {os.path.realpath(out)}", "give the name of a file")
    if out.exists() and not out.is_file():
        raise OutputError(f"{out} is no file that could be replaced", "give the name of a file")
    if any(path.exists() and out.exists() and path.samefile(out) for path in read):
        raise OutputError(f"{out} is read, and would be overwritten", "give the name of another file")
    if not out.parent.is_dir():
        raise OutputError(f"there is no folder {out.parent} for {out.name}", "make it first, or choose another place")
    with explained(out), tempfile.TemporaryFile(dir=out.parent):
        pass


def refuse_link(path: Path, option: str) -> None:
    """What is written to a link would land somewhere else than the name says.

    Raises:
        OutputError: `path` itself is a symbolic link (a link further up is the user's own arrangement).
    """
    if path.is_symlink():
        real = os.path.realpath(path)
        raise OutputError(f"{path} is a link to {real}", f"give the folder itself: {option} {real}")


def refuse_links_out(folder: Path) -> None:
    """Nothing in a folder of ours leads out of it.

    Raises:
        OutputError: an entry is a link to something outside.
    """
    inside = os.path.realpath(folder)
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and os.path.commonpath([inside, os.path.realpath(path)]) != inside:
            raise OutputError(
                f"{path} is a link to {os.path.realpath(path)}, outside of {folder}",
                "put a real file or folder in its place",
            )
