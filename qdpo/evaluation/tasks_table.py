"""Benchmark results as tables: lm-eval's own layout, as the cards of others show it, and before/after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qdpo.evaluation.view import show_p

if TYPE_CHECKING:
    from rich.table import Table

NAMES = {"base": "Base", "result": "Result"}
HEADERS = ("Tasks", "Version", "Filter", "Metric", "Value", "", "Stderr")
RIGHT = {"Value", "Stderr"}


def markdown(found: dict[str, Any]) -> str:
    """`qdpo.evaluation.tasks`' object as Markdown: a table for each model, shots and limit, as lm-eval prints it."""
    kinds: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for entry in found["tasks"]:
        kinds.setdefault((entry["shots"], entry["limit"], entry["batch_size"]), []).append(entry)
    parts = []
    for side, about in found["models"].items():
        for (shots, limit, batch), entries in kinds.items():
            if lines := _rows([entry for entry in entries if entry[side]], side):
                settings = f"{about['description']}, limit: {limit}, num_fewshot: {shots}, batch_size: {batch}"
                table = aligned(HEADERS, lines)
                parts.append(f"#### {NAMES[side]}, {shots}-shot\n```\n{settings}\n```\n{table}\n")
    return "\n".join(parts)


def _rows(entries: Sequence[dict[str, Any]], side: str) -> list[tuple[str, ...]]:
    """Cells of `HEADERS`; only the first of a task's entries has its name and version."""
    rows, last = [], None
    for entry in entries:
        name = " " * entry["depth"] + ("- " if entry["depth"] else "") + entry["task"]
        first = (name, entry["version"]) if entry["task"] != last else ("", "")
        last = entry["task"]
        value, error = entry[side]["value"], entry[side]["stderr"]
        shown = (f"{value:.4f}", "±", "N/A" if error is None else f"{error:.4f}")
        rows.append((*first, entry["filter"], entry["metric"], *shown))
    return rows


def aligned(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up as text."""
    columns = []
    for header, *cells in zip(headers, *rows, strict=True):
        width, right = max(3, *map(len, (header, *cells))), header in RIGHT
        rule = "-" * (width - 1) + ":" if right else "-" * width
        columns.append([header.center(width), rule, *(c.rjust(width) if right else c.ljust(width) for c in cells)])
    return "\n".join(f"|{'|'.join(line)}|" for line in zip(*columns, strict=True))


def before_after(found: dict[str, Any]) -> Table:
    """Base and result side by side, in percent where the metric is a share."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    adapted = "result" in found["models"]
    for number, column in enumerate(("task", "shots", "metric", *found["models"], *(["McNemar p"] if adapted else []))):
        table.add_column(column, justify="left" if number in (0, 2) else "right")
    for entry in found["tasks"]:
        metric = entry["metric"] if entry["filter"] == "none" else f"{entry['metric']} ({entry['filter']})"
        metric += " *" if entry["counts"] else ""
        cells = [_value(entry[side]) for side in found["models"]]
        if adapted:
            cells.append(show_p(entry["paired"]["p_value"]) if entry["paired"] else "")
        title = " " * entry["depth"] + entry["task"] + ("" if entry["limit"] is None else f" (first {entry['limit']})")
        table.add_row(Text(title), str(entry["shots"]), Text(metric), *cells)
    for name, values in found["averages"].items():
        table.add_row(name, "", "average of *", *(f"{values[side]:.2f}" for side in found["models"]))
    return table


def _value(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return ""
    return f"{measured['value']:.4f}" + ("" if measured["stderr"] is None else f" ± {measured['stderr']:.4f}")
