"""The parts of README and docs that are made from the code and from results: file tree, presets, benchmark, faults.

    python tools/readme_parts.py          rewrite them
    python tools/readme_parts.py --check  exit with 1 when they are out of date

Each part stands between `<!-- NAME -->` and `<!-- /NAME -->`.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for `benchmarks`, which is not installed

ROOMS = {
    "qdpo": "the package",
    "presets": "one YAML file per known recipe, shipped inside the wheel",
    "tools": "what contributors run",
    "benchmarks": "qdpo beside stock TRL, in one run",
    "docs": "more than fits here",
    "tests": "mirrors the package; tests/parity against TRL, tests/faults breaks things on purpose",
    ".ci": "what every change must pass",
}


def summary(path: Path) -> str:
    """The first line of a module's docstring, or of a text file."""
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0].rstrip(".")
    first = path.read_text().split("\n")[0]
    return first.lstrip("# ").rstrip(".")


def file_tree() -> str:
    """Every source file with one line on what it is for."""
    lines = ["```"]
    for room, meaning in ROOMS.items():
        folder = ROOT / room
        if not folder.is_dir():
            continue
        lines.append(f"{room + '/':<42} {meaning}")
        if room not in ("qdpo", "tools", "benchmarks", "docs"):
            continue
        lines += _folder(folder, depth=1)
    return "\n".join([*lines, "```"])


def _folder(folder: Path, depth: int) -> list[str]:
    lines = []
    files = sorted(p for p in folder.iterdir() if p.suffix in (".py", ".md") and p.name != "__init__.py")
    for path in files:
        lines.append(f"{'  ' * depth + path.name:<42} {summary(path)}")
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))):
        init = path / "__init__.py"
        if not init.is_file():
            continue
        lines.append(f"{'  ' * depth + path.name + '/':<42} {summary(init)}")
        lines += _folder(path, depth + 1)
    return lines


def presets_table() -> str:
    """The shipped presets: what they train, on what, for which card."""
    from qdpo.config.presets import names
    from qdpo.config.resolve import resolve

    lines = ["| preset | what | base | data | card |", "| --- | --- | --- | --- | --- |"]
    for name in names():
        config = resolve(name).config
        base, data = (f"`{value}`" for value in (config.model.name, config.data.name))
        lines.append(f"| `{name}` | {config.about} | {base} | {data} | {config.card} |")
    return "\n".join(lines)


def benchmark_table() -> str:
    """The engine beside stock TRL, from the results that are kept: what the README shows."""
    from benchmarks.table import summary

    return summary(_results())


def benchmark_details() -> str:
    """The same with ranges, tokens and gradients."""
    from benchmarks.table import details

    return details(_results())


def _results() -> list[dict[str, Any]]:
    paths = sorted((ROOT / "benchmarks" / "results").glob("engine-*.json"))
    return [json.loads(path.read_text()) for path in paths]


def faults_table() -> str:
    """What was broken on purpose, and what came of it: the table of docs/reliability.md."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    start = text.index("| fault |")
    return text[start:].split("\n\n")[0].strip()


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "file-tree": file_tree,
        "presets": presets_table,
        "benchmark": benchmark_table,
        "faults": faults_table,
    },
    "docs/engine.md": {"benchmark": benchmark_details},
}
"""File: its parts."""


def filled(name: str) -> str:
    """One of the files of `PARTS` with its parts made anew."""
    text = (ROOT / name).read_text()
    for part, make in PARTS[name].items():
        pattern = re.compile(rf"(<!-- {part} -->\n).*?(<!-- /{part} -->)", re.S)
        if not pattern.search(text):
            raise SystemExit(f"{name} has no part {part}")
        made = make()
        text = pattern.sub(lambda match, made=made: match[1] + made + "\n" + match[2], text)
    return text


def main() -> int:
    """Rewrite or check."""
    old = {name: (ROOT / name).read_text() for name in PARTS}
    new = {name: filled(name) for name in PARTS}
    if "--check" in sys.argv[1:]:
        for name in PARTS:
            if new[name] != old[name]:
                print(f"{name} is out of date: run python tools/readme_parts.py", file=sys.stderr)
        return int(new != old)
    for name, text in new.items():
        (ROOT / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
