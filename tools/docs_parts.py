"""The parts of README and docs that are made from the code and from results: layers, files, API, presets, speed.

    python tools/docs_parts.py          rewrite them
    python tools/docs_parts.py --check  exit with 1 when they are out of date

Each part stands between `<!-- NAME -->` and `<!-- /NAME -->`.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # for `benchmarks`, which is not installed

ROOMS = {
    "qdpo": "the package",
    "presets": "one YAML file per known recipe, shipped inside the wheel",
    "examples": "the Python API in scripts of a page",
    "notebooks": "the same for Colab and Jupyter",
    "tools": "what contributors run",
    "benchmarks": "qdpo beside stock TRL, in one run",
    "docs": "these pages",
    "tests": "mirrors the package; tests/parity against TRL, tests/faults breaks things on purpose",
    ".ci": "what every change must pass",
}
LISTED = ("qdpo", "examples", "tools", "benchmarks", "docs")
"""Rooms whose files are listed one by one."""


def summary(path: Path) -> str:
    """The first line of a module's docstring, or of a text file."""
    text = path.read_text()
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    return text.split("\n")[0].lstrip("# ").rstrip(".").replace("|", "\\|")


def literal(path: Path, name: str) -> Any:
    """The value of a module's constant, read without importing the module."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise SystemExit(f"{path.relative_to(ROOT)} has no constant {name}")


def layers() -> str:
    """The rooms from the top down, each with the first line of its docstring; those of one layer side by side."""
    lines = ["| layer | what it is |", "| --- | --- |"]
    for rooms in reversed(literal(ROOT / "tests" / "test_layers.py", "LAYERS")):
        for room in sorted(rooms):
            folder = ROOT / "qdpo" / room
            module = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
            lines.append(f"| `{room}` | {summary(module)} |")
    return "\n".join(lines)


def files() -> str:
    """Every source file with one line on what it is for: a table for each folder."""
    parts = []
    for room, meaning in ROOMS.items():
        if (ROOT / room).is_dir():
            parts += [f"### {room}/\n", f"{meaning[0].upper()}{meaning[1:]}.\n"]
            parts += _tables(ROOT / room) if room in LISTED else []
    return "\n".join(parts).rstrip()


def _tables(folder: Path) -> Iterator[str]:
    found = sorted(p for p in folder.iterdir() if p.suffix in (".py", ".md") and p.name != "__init__.py")
    yield (
        "\n".join(["| file | what it is |", "| --- | --- |", *(f"| `{p.name}` | {summary(p)} |" for p in found)]) + "\n"
    )
    for init in sorted(folder.glob("*/__init__.py")):
        if any(init.parent.glob("[!_]*.py")):
            yield f"### {init.parent.relative_to(ROOT)}/\n"
            yield f"{summary(init)}.\n"
            yield from _tables(init.parent)


def api() -> str:
    """A block for each public name, which the site's build fills from its docstring."""
    names = [name for name in literal(ROOT / "qdpo" / "__init__.py", "__all__") if not name.startswith("_")]
    return "\n\n".join(f"::: qdpo.{name}" for name in names)


def presets() -> str:
    """The shipped presets: what they train, on what, for which card."""
    from qdpo.config.presets import names
    from qdpo.config.resolve import resolve

    lines = ["| preset | what | base | data | card |", "| --- | --- | --- | --- | --- |"]
    for name in names():
        config = resolve(name).config
        base, data = (f"`{value}`" for value in (config.model.name, config.data.name))
        lines.append(f"| `{name}` | {config.about} | {base} | {data} | {config.card} |")
    return "\n".join(lines)


def _results() -> list[dict[str, Any]]:
    paths = sorted((ROOT / "benchmarks" / "results").glob("engine-*.json"))
    return [json.loads(path.read_text()) for path in paths]


def benchmark() -> str:
    """The engine beside stock TRL, one row a workload."""
    from benchmarks.table import summary

    return summary(_results())


def benchmark_details() -> str:
    """The same with ranges, tokens and gradients."""
    from benchmarks.table import details

    return details(_results())


def speed() -> str:
    """One workload of the benchmark in a sentence, with its conditions."""
    from benchmarks.table import sentence

    return sentence(_results(), "winogrande")


def selected() -> str:
    """What a part of the pairs reaches, a table for each set."""
    from benchmarks.select_table import summary

    paths = sorted((ROOT / "benchmarks" / "results").glob("select-*.json"))
    return summary([json.loads(path.read_text()) for path in paths])


def gguf_types() -> str:
    """What a file of each GGUF type holds, for a model of Mistral-7B's shape and without an importance matrix."""
    from qdpo.export.gguf.kinds import KINDS, Traits, stored_bytes, tensor_type

    layer = {"attn_q": (4096, 4096), "attn_k": (1024, 4096), "attn_v": (1024, 4096), "attn_output": (4096, 4096)}
    layer |= {"ffn_gate": (14336, 4096), "ffn_up": (14336, 4096), "ffn_down": (4096, 14336)}
    tensors = {f"blk.{i}.{name}.weight": shape for i in range(32) for name, shape in layer.items()}
    tensors |= {"token_embd.weight": (32000, 4096), "output.weight": (32000, 4096)}
    weights = sum(rows * columns for rows, columns in tensors.values())
    lines = ["| `--quant` | bits a weight | GB | its matrices are |", "| --- | --- | --- | --- |"]
    for quant, kind in KINDS.items():
        traits = Traits(32, shared_head=False, sharing=4, importance=quant == "q2_k_s")
        types = {name: tensor_type(kind, name, shape, traits) for name, shape in tensors.items()}
        stored = sum(stored_bytes(found, tensors[name][0] * tensors[name][1]) for name, found in types.items())
        counts = Counter(found.name for found in types.values()).most_common()
        mix = ", ".join(f"{name} ({count})" if len(counts) > 1 else name for name, count in counts)
        lines.append(f"| `{quant}` | {8 * stored / weights:.2f} | {stored / 1e9:.2f} | {mix} |")
    return "\n".join(lines)


def formats() -> str:
    """The shapes of rows that are recognised, in the order in which the more specific one of two wins."""
    from qdpo.data.schemas import FORMATS

    lines = ["| format | columns | whose rows |", "| --- | --- | --- |"]
    for format in FORMATS:
        columns = format.described if isinstance(format.described, str) else ""
        lines.append(f"| `{format.name}` | {columns or ', '.join(format.columns)} | {format.used_by} |")
    return "\n".join(lines)


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"speed": speed},
    "docs/api.md": {"api": api},
    "docs/architecture.md": {"layers": layers, "files": files},
    "docs/data.md": {"formats": formats},
    "docs/benchmarks.md": {"benchmark": benchmark, "benchmark-details": benchmark_details},
    "docs/export.md": {"gguf-types": gguf_types},
    "docs/pairs-select.md": {"select": selected},
    "docs/presets.md": {"presets": presets},
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
                print(f"{name} is out of date: run python tools/docs_parts.py", file=sys.stderr)
        return int(new != old)
    for name, text in new.items():
        (ROOT / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
