"""`qdpo runs`: the runs of a folder in a table, or two of them compared."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdpo.listing import Listing

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


COLUMNS = (
    *("run", "state", "preset", "base", "data", "steps", "prefers chosen", "reward accuracy"),
    *("margin", "time", "memory", "checkpoint"),
)


def _table(rows: list[dict[str, Any]], folder: Path) -> Listing:
    from qdpo.listing import Listing

    return Listing(COLUMNS, [_cells(row, folder) for row in rows], texts=5)


def _cells(row: dict[str, Any], folder: Path) -> list[str]:
    name = Path(row["folder"]).name if row["folder"] != str(folder) else row["folder"]
    if row["state"] == "damaged":
        return [name, "damaged"]
    return [
        name,
        row["state"] + ("" if row["state"] == "finished" else f", {_age(row['age_seconds'])} ago"),
        *(_short(row[key]) for key in ("preset", "base", "data")),
        f"{row['step']}/{row['steps'] or '?'}",
        *(_change(row, key, ".1%") for key in ("prefers_chosen", "reward_accuracy")),
        _show(row["after"]["reward_margin"], ".3f"),
        _duration(row["seconds"]),
        f"{row['peak_memory_bytes'] / 2**30:.2f} GiB" if row["peak_memory_bytes"] else "",
        "" if row["checkpoint"] is None else str(row["checkpoint"]),
    ]


def _compare(first: Path, second: Path, as_json: bool) -> int:
    from qdpo import console
    from qdpo.config.strict_yaml import dump
    from qdpo.evaluation.runs import RESULTS, compare
    from qdpo.listing import Listing

    found = compare(first.expanduser(), second.expanduser())
    if as_json:
        console.out().print_json(data=found)
        return 0
    out, runs = console.out(), found["runs"]
    names = [str(first), str(second)]
    rows: list[tuple[str, ...]] = []
    for setting in found["settings"]:
        values = zip(setting["values"], setting["origins"], strict=True)
        rows.append((setting["key"], *(f"{dump(value)}  [{origin}]" for value, origin in values)))
    rows += [(f"{entry['name']} (version)", *map(str, entry["values"])) for entry in found["versions"]]
    if found["hardware"][0] != found["hardware"][1]:
        rows.append(("hardware", *map(str, found["hardware"])))
    out.print(Listing(("setting", *names), rows, texts=3) if rows else "the same settings, versions and hardware")
    out.print()
    rows = [
        ("state", *(run["state"] for run in runs)),
        ("steps", *(f"{run['step']}/{run['steps'] or '?'}" for run in runs)),
    ]
    for key in RESULTS:
        form = ".1%" if key in ("prefers_chosen", "reward_accuracy") else ".4f"
        rows.append((key.replace("_", " "), *(_change(run, key, form) for run in runs)))
    rows.append(("time", *(_duration(run["seconds"]) for run in runs)))
    rows.append(("peak memory", *(f"{b / 2**30:.2f} GiB" if (b := run["peak_memory_bytes"]) else "" for run in runs)))
    out.print(Listing(("result", *names), rows))
    if found["same_heldout"] is False:
        console.warn("the two runs were evaluated on different held-out pairs: their results cannot be compared")
    return 0


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
