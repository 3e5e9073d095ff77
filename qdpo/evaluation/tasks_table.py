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
    parts = []
    for side, about in found["models"].items():
        for shots, limit, batch in dict.fromkeys((e["shots"], e["limit"], e["batch_size"]) for e in found["tasks"]):
            entries = [
                e
                for e in found["tasks"]
                if (e["shots"], e["limit"], e["batch_size"]) == (shots, limit, batch) and e[side]
            ]
            if entries:
                settings = f"limit: {limit}, num_fewshot: {shots}, batch_size: {batch}"
                title = f"{NAMES[side]}, {shots}-shot"
                parts.append(f"#### {title}\n```\n{about['description']}, {settings}\n```\n{_lines(entries, side)}\n")
    return "\n".join(parts)


def _lines(entries: Sequence[dict[str, Any]], side: str) -> str:
    rows, last = [], None
    for entry in entries:
        name = " " * entry["depth"] + ("- " if entry["depth"] else "") + entry["task"]
        first, last = entry["task"] != last, entry["task"]
        value, error = entry[side]["value"], entry[side]["stderr"]
        rows.append(
            (
                name if first else "",
                entry["version"] if first else "",
                entry["filter"],
                entry["metric"],
                f"{value:.4f}",
                "±",
                "N/A" if error is None else f"{error:.4f}",
            )
        )
    return aligned(HEADERS, rows)


def aligned(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up as text."""
    widths = [max(3, *(len(row[i]) for row in (headers, *rows))) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if header in RIGHT else cell.ljust(width)
            for cell, width, header in zip(cells, widths, headers, strict=True)
        )
        return f"|{'|'.join(padded)}|"

    rule = "|".join(
        "-" * (width - 1) + ":" if header in RIGHT else "-" * width
        for header, width in zip(headers, widths, strict=True)
    )
    titles = "|".join(header.center(width) for header, width in zip(headers, widths, strict=True))
    return "\n".join([f"|{titles}|", f"|{rule}|", *map(line, rows)])


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
