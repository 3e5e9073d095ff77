"""Imports go down the layers only (the picture is in the README)."""

import ast
from pathlib import Path

import pytest

import qdpo

PACKAGE = Path(qdpo.__file__).parent

LAYERS = {
    1: {"files", "paths", "console", "redact", "errors", "libraries", "allocator"},
    2: {"config", "cuda", "hardware"},
    3: {"packing", "model", "data", "memory"},
    4: {"training", "evaluation", "export", "report", "compat"},
    5: {"cli"},
}
LAYER_OF = {room: number for number, rooms in LAYERS.items() for room in rooms}
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
    return found


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "presets" not in path.parts)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room in OUTSIDE:
        return
    assert room in LAYER_OF, f"{room} has no layer; add it to the picture in the README and here"
    higher = {r for r in rooms_imported(path.read_text()) if LAYER_OF.get(r, 0) > LAYER_OF[room]}
    assert not higher, f"{path.name} (layer {LAYER_OF[room]}) imports {sorted(higher)} from above"


def test_finds_imports_inside_functions() -> None:
    source = "def f():\n    from qdpo.cli import main\n    import qdpo.export.merge\n"
    assert rooms_imported(source) == {"cli", "export"}
