"""Ways in which a file is damaged, seeded."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

KINDS = ("truncate", "zero tail", "zero block", "flip a bit", "swap", "delete", "grow", "empty")


def damage(path: Path, kind: str, draw: random.Random, others: list[Path]) -> None:
    """Damage one file.

    Args:
        path: the file.
        kind: one of `KINDS`.
        draw: decides where.
        others: files to swap it with; one of another content is taken.
    """
    content = bytearray(path.read_bytes())
    size = len(content)
    if kind == "truncate":
        path.write_bytes(content[: draw.randrange(size)])
    elif kind == "zero tail":
        begin = draw.randrange(size)
        changed = content[:begin] + bytes(size - begin)
        path.write_bytes(changed if changed != content else content[:-1])
    elif kind == "zero block":
        begin = draw.randrange(size)
        changed = content[:begin] + bytes(min(4096, size - begin)) + content[begin + 4096 :]
        path.write_bytes(changed if changed != content else content + b"\0")
    elif kind == "flip a bit":
        content[draw.randrange(size)] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    elif kind == "swap":
        other = draw.choice([found for found in others if found.read_bytes() != content])
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif kind == "delete":
        path.unlink()
    elif kind == "grow":
        path.write_bytes(content + draw.randbytes(draw.randrange(1, 100)))
    else:
        path.write_bytes(b"")


def newer_schema(folder: Path) -> None:
    """A manifest of a later version."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"schema": 2}))


def files_of(folder: Path) -> list[Path]:
    """Its files, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def copy(folder: Path, to: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(folder, to)
    return to
