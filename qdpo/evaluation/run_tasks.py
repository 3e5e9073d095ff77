"""Running benchmarks from beginning to end: tasks and their data first, then base, then result."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdpo import console
from qdpo.config.schema import ModelSection, RunConfig
from qdpo.errors import InputMissingError
from qdpo.evaluation import benchmarks
from qdpo.evaluation.harness import Harness, Row, Settings
from qdpo.evaluation.tasks import entries
from qdpo.files import MANIFEST, manifest_problems, read_json, sha256_file
from qdpo.hardware import Device, find_device
from qdpo.libraries import quiet_libraries
from qdpo.model.load import Base, load_base, load_tokenizer
from qdpo.model.weights import weights_sha256
from qdpo.run.folder import EXPORT
from qdpo.run.trained import load_adapted, tokenizer_of


def groups_of(tasks: Sequence[str], shots: int | None, preset: str | None) -> dict[int | None, list[str]]:
    """Names of tasks by few-shot examples, from the command line.

    Raises:
        UsageError: there is no such preset.
    """
    if preset is None:
        return {shots: list(dict.fromkeys(tasks))}
    found: dict[int | None, list[str]] = {}
    for benchmark in benchmarks.preset(preset):
        found.setdefault(benchmark.shots, []).append(benchmark.task)
    return found


def run_adapter(
    config: RunConfig, adapter: Path | None, groups: dict[int | None, list[str]], settings: Settings
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Tasks on the base as it was trained on, and on the base with an adapter.

    Returns:
        `models` and `tasks` of `qdpo.evaluation.tasks`.

    Raises:
        QdpoError: tasks, data, model or adapter cannot be had.
    """
    quiet_libraries()
    harness = Harness(groups, settings)
    device = find_device()
    if adapter is None:
        base = load_base(config.model, device)
        console.say("running the base")
        rows = harness.run(base.model.eval(), load_tokenizer(config.model))
        return {"base": _about(base, config.model, device)}, entries(rows, None, settings)
    base, policy = load_adapted(config.model, adapter, device)
    tokenizer = tokenizer_of(adapter, config.model)
    console.say("running the base")
    with policy.disable_adapter():
        before = harness.run(base.model, tokenizer)
    console.say("running the result")
    after = harness.run(base.model, tokenizer)
    models = {name: _about(base, config.model, device, path) for name, path in (("base", None), ("result", adapter))}
    return models, entries(before, after, settings)


def run_merged(
    run: Path, config: RunConfig, groups: dict[int | None, list[str]], settings: Settings
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Tasks on the base and on the merged model that `qdpo merge-export --format safetensors` wrote.

    The base is in 4 bits where the merge is into the 4-bit base, and as stored where it is into the original one.

    Raises:
        InputMissingError: there is no whole export.
        QdpoError: tasks, data or base cannot be had.
    """
    quiet_libraries()
    folder = run / EXPORT / "safetensors"
    if not (folder / MANIFEST).is_file():
        raise InputMissingError(
            f"{run} has no merged model", f"write it first: qdpo merge-export --run {run} --format safetensors"
        )
    if problems := manifest_problems(folder):
        raise InputMissingError(f"{folder} is damaged: {problems[0]}", "export it again")
    into_original = read_json(folder / "export.json").get("merge_base") == "original"
    merged = ModelSection(name=str(folder), quantization="none", dtype=config.model.dtype)
    plain = config.model.model_copy(update={"quantization": "none"}) if into_original else config.model
    harness = Harness(groups, settings)
    device, models = find_device(), {}
    rows: dict[str, list[Row]] = {}
    for name, section in (("base", plain), ("result", merged)):
        base = load_base(section, device)
        console.say(f"running the {'base' if name == 'base' else 'merged model'}")
        rows[name] = harness.run(base.model.eval(), load_tokenizer(merged))
        models[name] = _about(base, section, device)
        # one model at a time in memory
        del base
        gc.collect()
    return models, entries(rows["base"], rows["result"], settings)


def _about(base: Base, config: ModelSection, device: Device, adapter: Path | None = None) -> dict[str, Any]:
    dtype = str(base.dtype).removeprefix("torch.")
    arguments = [f"pretrained={config.name}"]
    arguments += [f"peft={adapter}"] if adapter else []
    arguments += [f"load_in_4bit={config.quantization == 'nf4'}", f"dtype={dtype}"]
    weights = adapter / "adapter_model.safetensors" if adapter else None
    return {
        "description": f"hf ({','.join(arguments)})",
        "base": config.name,
        "revision": base.source.revision,
        "weights_sha256": base.weights_sha256 or weights_sha256(base.source),
        "adapter": str(adapter) if adapter else None,
        "adapter_sha256": sha256_file(weights) if weights and weights.is_file() else None,
        "quantization": config.quantization,
        "dtype": dtype,
        "device": device.name,
    }
