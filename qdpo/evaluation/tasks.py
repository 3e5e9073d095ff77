"""Benchmarks of base and result: run, merged with what was run before, written.

`RUN/evaluation/tasks.json`:

    schema         1
    created, qdpo, lm_eval     when (the last change), and by which versions
    form           adapter: the 4-bit base with the adapter; merged: what `qdpo merge-export` wrote
    chat_template  whether tasks were asked in the chat format
    models         by name, `base` and (where there is an adapter) `result`: description (as lm-eval prints its model
                   arguments), base, revision, weights_sha256, adapter, adapter_sha256, quantization,
                   dtype, device
    tasks          one entry per task, shots, limit, filter and metric, groups before their members:
      task, title, version, shots, filter, metric, depth (below a group), dataset {path, config, split}, batch_size
      limit        items at most, null for all: a limited result is no benchmark result
      items        how many were answered
      base, result {value, stderr}; null where that model was not run or lm-eval gives no error
      paired       {gained, lost, p_value}: items that only the result, or only the base, has right, and McNemar's
                   exact test on them; null where the metric is not 0 or 1 of each item
      counts       whether this is the metric that the preset of the task counts
    averages       by preset whose tasks are all there without limit: {base, result}, means of what counts, in percent
    model_index    the `results` of a card's model-index, for the result: entries {task, dataset, metrics, source} of
                   what counts and of tasks without a preset; limited results are left out

A second evaluation adds to the file, and replaces entries of the same task, shots, limit, filter and metric, as long as
models, form and format are the same; otherwise the file begins anew. `tasks.md` has the same as tables.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from qdpo import __version__, console
from qdpo.errors import InputMissingError
from qdpo.evaluation.benchmarks import PRESETS, known
from qdpo.evaluation.harness import Row, Settings
from qdpo.evaluation.statistics import mcnemar_exact
from qdpo.evaluation.tasks_table import markdown
from qdpo.files import atomic_write, explained, read_json, write_json
from qdpo.run.folder import TASKS, now

TABLES = "tasks.md"
LOADERS = {"json", "csv", "parquet", "text", "arrow"}
"""Dataset paths of local files: the hub would take them for somebody's dataset."""
KEY = ("task", "shots", "limit", "filter", "metric")


def entries(base: list[Row], result: list[Row] | None, settings: Settings) -> list[dict[str, Any]]:
    """The rows of both models side by side."""
    other = {(row.task, row.filter, row.metric, row.shots): row for row in result or []}
    made = []
    for row in base:
        after = other.get((row.task, row.filter, row.metric, row.shots))
        benchmark = known(row.task, row.shots)
        made.append(
            {
                "task": row.task,
                "title": benchmark.title if benchmark else row.title,
                "version": row.version,
                "shots": row.shots,
                "filter": row.filter,
                "metric": row.metric,
                "depth": row.depth,
                "dataset": row.dataset,
                "batch_size": settings.batch_size,
                "limit": settings.limit,
                "items": row.items,
                "base": {"value": row.value, "stderr": row.stderr},
                "result": {"value": after.value, "stderr": after.stderr} if after else None,
                "paired": _paired(row.right, after.right) if after else None,
                "counts": benchmark is not None and (benchmark.metric, benchmark.filter) == (row.metric, row.filter),
            }
        )
    return made


def _paired(base: dict[int, bool], result: dict[int, bool]) -> dict[str, Any] | None:
    if not base or base.keys() != result.keys():
        return None
    gained = sum(result[item] and not base[item] for item in base)
    lost = sum(base[item] and not result[item] for item in base)
    return {"gained": gained, "lost": lost, "p_value": mcnemar_exact(gained, lost)}


def report(
    models: dict[str, Any], tasks: list[dict[str, Any]], form: str, settings: Settings, before: dict[str, Any] | None
) -> dict[str, Any]:
    """The object of tasks.json.

    Args:
        models: what was run, by name.
        tasks: what `entries` made.
        form: adapter or merged.
        settings: how it was run.
        before: the object of an earlier evaluation.
    """
    from importlib.metadata import version

    what = {"form": form, "chat_template": settings.chat_template, "models": models}
    if before is not None:
        if _same(before, what):
            new = {_key(entry) for entry in tasks}
            tasks = [entry for entry in before["tasks"] if _key(entry) not in new] + tasks
        else:
            console.note("the results that were there are of another model, form or format: replaced")
    return {
        "schema": 1,
        "created": now(),
        "qdpo": __version__,
        "lm_eval": version("lm-eval"),
        **what,
        "tasks": tasks,
        "averages": averages(tasks),
        "model_index": model_index(tasks),
    }


def _same(before: dict[str, Any], what: dict[str, Any]) -> bool:
    """Whether an earlier evaluation was of the same models in the same form; paths and devices do not count."""

    def identity(found: dict[str, Any]) -> list[Any]:
        keys = ("revision", "weights_sha256", "adapter_sha256", "quantization", "dtype")
        models = {name: [about.get(key) for key in keys] for name, about in found.get("models", {}).items()}
        return [found.get("form"), found.get("chat_template"), models]

    return identity(before) == identity(what)


def _key(entry: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(entry[key] for key in KEY)


def averages(tasks: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """The mean of what counts, in percent, for each preset of which every task is there without limit."""
    counting = {(e["task"], e["shots"]): e for e in tasks if e["counts"] and e["limit"] is None}
    found: dict[str, dict[str, float | None]] = {}
    for name, benchmarks in PRESETS.items():
        own = [counting.get((b.task, b.shots)) for b in benchmarks]
        if None in own:
            continue
        found[name] = {}
        for side in ("base", "result"):
            values = [entry[side]["value"] for entry in own if entry and entry[side]]
            found[name][side] = 100 * sum(values) / len(values) if len(values) == len(own) else None
    return found


def model_index(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries as in zephyr-7b-gemma's card: percent, dataset with configuration and split, few-shot examples."""
    results = []
    for entry in tasks:
        benchmark = known(entry["task"], entry["shots"])
        if entry["limit"] is not None or not entry["result"] or entry["depth"] or (benchmark and not entry["counts"]):
            continue
        path, config, split = (entry["dataset"][key] for key in ("path", "config", "split"))
        kind = name = entry["metric"]
        if benchmark:
            (path, config, split), (kind, name) = benchmark.dataset, benchmark.index_metric
        kept = path if path and path not in LOADERS else entry["task"]
        title = entry["title"] if benchmark else f"{entry['title']} ({entry['shots']}-shot)"
        dataset: dict[str, Any] = {"name": title, "type": kept}
        dataset |= {key: value for key, value in (("config", config), ("split", split)) if value}
        dataset["args"] = {"num_few_shot": entry["shots"]}
        percent = benchmark is not None or 0 <= entry["result"]["value"] <= 1
        value = entry["result"]["value"] * (100 if percent else 1)
        results.append(
            {
                "task": {"type": "text-generation", "name": "Text Generation"},
                "dataset": dataset,
                "metrics": [{"type": kind, "value": round(value, 2), "name": name}],
                "source": {
                    "url": "https://github.com/EleutherAI/lm-evaluation-harness",
                    "name": "lm-evaluation-harness, run by qdpo",
                },
            }
        )
    return results


def read(folder: Path) -> dict[str, Any] | None:
    """An earlier evaluation in a folder; None when there is none, or it is not one that this version can add to."""
    path = folder / TASKS
    if not path.exists():
        return None
    with contextlib.suppress(InputMissingError):
        found = read_json(path)
        if found.get("schema") == 1 and isinstance(found.get("tasks"), list):
            return found
    console.warn(f"{path} cannot be read and is replaced")
    return None


def write(folder: Path, found: dict[str, Any]) -> None:
    """Write tasks.json and tasks.md, each whole or not at all."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / TASKS, found)
    atomic_write(folder / TABLES, markdown(found))
    console.good(f"written to {folder / TASKS} and {TABLES}")
