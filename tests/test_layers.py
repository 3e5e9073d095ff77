"""Every room stands on one layer, and imports go down only (docs/architecture.md has the picture)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import qdpo

PACKAGE = Path(qdpo.__file__).parent

LAYERS = (
    {"errors", "foreign", "grammar", "intervals"},
    {"redact", "libraries", "allocator", "console", "files", "listing", "loopback", "notebook", "progress"},
    {"cpu", "hardware", "paths"},
    {"config"},
    {"cuda"},
    {"model"},
    {"data"},
    {"engine"},
    {"run"},
    {"compat", "planner"},
    {"evaluation"},
    {"verdicts"},
    {"pairing"},
    {"export"},
    {"report"},
    {"training"},
    {"api"},
    {"cli"},
)
LAYER_OF = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
# The package itself holds its version, and `__main__` is the command line.
OUTSIDE = {"__init__", "__main__", "assets", "presets"}


def rooms_imported(source: str) -> set[str]:
    """Rooms of qdpo that a module imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "qdpo":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("qdpo.")}
    return found - OUTSIDE - {"__version__"}


def wrong(room: str, source: str) -> set[str]:
    """Rooms that a module of a room must not import: those above it, and the others on its layer."""
    others = rooms_imported(source) - {room}
    return {other for other in others if LAYER_OF.get(other, -1) >= LAYER_OF[room] and not _base(room, other)}


def _base(*rooms: str) -> bool:
    """Single modules of one layer at the bottom may use one another; `console` and `files` are such."""
    return all(LAYER_OF[room] < LAYER_OF["config"] and not (PACKAGE / room).is_dir() for room in rooms) and (
        len({LAYER_OF[room] for room in rooms}) == 1
    )


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "presets" not in path.parts)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room in OUTSIDE:
        return
    assert room in LAYER_OF, f"{room} has no layer; add it to the picture in docs/architecture.md and here"
    assert not (found := wrong(room, path.read_text())), f"{path.name} imports {sorted(found)}, which is not below it"


@pytest.mark.parametrize(
    ("room", "source", "found"),
    [
        ("export", "def f():\n    from qdpo.cli import main\n    import qdpo.run.folder\n", {"cli"}),
        ("evaluation", "from qdpo.verdicts import rules\n", {"verdicts"}),
        ("engine", "from qdpo.engine import masks\nfrom qdpo import console, planner\n", {"planner"}),
        ("files", "from qdpo import console, paths\n", {"paths"}),
    ],
)
def test_what_goes_up_or_sideways_is_seen(room: str, source: str, found: set[str]) -> None:
    assert wrong(room, source) == found
