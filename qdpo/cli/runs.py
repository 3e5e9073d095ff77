"""`qdpo runs`: the runs of a folder in a table, or two of them compared."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

HELP = "List the runs of a folder, or compare two: settings with their origins, and results."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`qdpo runs [FOLDER]`, `qdpo runs compare A B`."""
    parser.add_argument(
        "what", metavar="FOLDER", nargs="*", default=["runs"], help="folder of runs (runs), or: compare RUN RUN"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args: argparse.Namespace) -> int:
    """List or compare."""
    from qdpo.errors import UsageError

    first, *rest = args.what
    if first == "compare" and (rest or not Path(first).exists()):
        if len(rest) != 2:
            raise UsageError(f"compare takes two run directories, not {len(rest)}", "qdpo runs compare RUN RUN")
        return _compare(Path(rest[0]), Path(rest[1]), args.json)
    if rest:
        raise UsageError(f"runs takes one folder, not {len(args.what)}", "qdpo runs compare RUN RUN compares two")
    return _list(Path(first).expanduser(), args.json)


def _list(folder: Path, as_json: bool) -> int:
    from qdpo import console
    from qdpo.evaluation.runs import describe, find
    from qdpo.run.folder import sweep_exports

    found = find(folder)
    for path in found:
        sweep_exports(path)
    rows = [describe(path) for path in found]
    if as_json:
        console.out().print_json(data=rows)
    elif rows:
        console.out().print(_table(rows, folder))
        for row in rows:
            if row["problem"]:
                console.warn(f"{row['folder']} is damaged: {row['problem']}")
    else:
        console.say(f"no run in {folder}")
    return 0


def _table(rows: list[dict[str, Any]], folder: Path) -> Any:
    table = _new_table(("run", "state", "preset", "base", "data", "steps", "prefers chosen", "reward accuracy"), 5)
    for column in ("margin", "time", "memory", "checkpoint"):
        table.add_column(column, justify="right")
    for row in rows:
        name = Path(row["folder"]).name if row["folder"] != str(folder) else row["folder"]
        if row["state"] == "damaged":
            table.add_row(_text(name), "damaged")
            continue
        table.add_row(
            _text(name),
            row["state"] + ("" if row["state"] == "finished" else f", {_age(row['age_seconds'])} ago"),
            *(_text(_short(row[key])) for key in ("preset", "base", "data")),
            f"{row['step']}/{row['steps'] or '?'}",
            *(_change(row, key, ".1%") for key in ("prefers_chosen", "reward_accuracy")),
            _show(row["after"]["reward_margin"], ".3f"),
            _duration(row["seconds"]),
            f"{row['peak_memory_bytes'] / 2**30:.2f} GiB" if row["peak_memory_bytes"] else "",
            "" if row["checkpoint"] is None else str(row["checkpoint"]),
        )
    return table


def _compare(first: Path, second: Path, as_json: bool) -> int:
    from qdpo import console
    from qdpo.config.strict_yaml import dump
    from qdpo.evaluation.runs import RESULTS, compare

    found = compare(first.expanduser(), second.expanduser())
    if as_json:
        console.out().print_json(data=found)
        return 0
    out, runs = console.out(), found["runs"]
    names = [str(first), str(second)]
    table = _new_table(("setting", *names), 3)
    for setting in found["settings"]:
        cells = (f"{dump(v)}  [{o}]" for v, o in zip(setting["values"], setting["origins"], strict=True))
        table.add_row(setting["key"], *map(_text, cells))
    for entry in found["versions"]:
        table.add_row(f"{entry['name']} (version)", *(_text(str(value)) for value in entry["values"]))
    if found["hardware"][0] != found["hardware"][1]:
        table.add_row("hardware", *(_text(str(value)) for value in found["hardware"]))
    out.print(table if table.row_count else "the same settings, versions and hardware")
    out.print()
    table = _new_table(("result", *names), 1)
    table.add_row("state", *(run["state"] for run in runs))
    table.add_row("steps", *(f"{run['step']}/{run['steps'] or '?'}" for run in runs))
    for key in RESULTS:
        form = ".1%" if key in ("prefers_chosen", "reward_accuracy") else ".4f"
        table.add_row(key.replace("_", " "), *(_change(run, key, form) for run in runs))
    table.add_row("time", *(_duration(run["seconds"]) for run in runs))
    table.add_row("peak memory", *(f"{b / 2**30:.2f} GiB" if (b := run["peak_memory_bytes"]) else "" for run in runs))
    out.print(table)
    if found["same_heldout"] is False:
        console.warn("the two runs were evaluated on different held-out pairs: their results cannot be compared")
    return 0


def _new_table(columns: tuple[str, ...], left: int) -> Any:
    """A table of which the first `left` columns are texts."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(_text(column), justify="left" if number < left else "right", overflow="fold")
    return table


def _text(text: Any) -> Any:
    from rich.text import Text

    return Text(str(text))


def _short(name: Any) -> str:
    """A hub name as it is, a path by its last part."""
    text = str(name)
    return Path(text).name if text.startswith(("/", ".", "~")) else text


def _change(row: dict[str, Any], key: str, form: str) -> str:
    before, after = (_show(row[side][key], form) for side in ("before", "after"))
    return f"{before} -> {after}" if before and after else after or before


def _show(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ""


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
