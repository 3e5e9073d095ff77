"""The YAML block at the head of a model card, as the Hugging Face hub reads it."""

from __future__ import annotations

from typing import Any

from qdpo.export.formats import FORMATS
from qdpo.report import markdown as md
from qdpo.report.facts import Facts, name_on_hub
from qdpo.run.folder import HELDOUT, TASKS
from qdpo.run.record import dig

# The identifiers that the hub knows; anything else has to be declared as `other` with a name.
# fmt: off
LICENSES = frozenset((
    "afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0", "bigcode-openrail-m",
    "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0",
    "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "creativeml-openrail-m",
    "deepfloyd-if-license", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "gemma", "gfdl",
    "gpl", "gpl-2.0", "gpl-3.0", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2", "llama3", "llama3.1",
    "llama3.2", "llama3.3", "llama4", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by", "ofl-1.1",
    "openrail", "openrail++", "osl-3.0", "pddl", "postgresql", "unlicense", "wtfpl", "zlib",
))
# fmt: on

# Where the hub shows results: type, name, key of the evaluation.
RESULTS = (
    ("accuracy", "Rewards/accuracies", "rewards/accuracies"),
    ("rewards/margins", "Rewards/margins", "rewards/margins"),
    ("loss", "Loss", "loss"),
)

PREFERENCE = {"type": "text-generation", "name": "Preference modelling on held-out pairs"}


def metadata(run: Facts) -> dict[str, Any]:
    """The block as a mapping; what is not known is left out.

    A base or dataset that is not on the hub is left out too: the hub would take its name for somebody else's.
    """
    values: dict[str, Any] = {}
    if run.base.on_hub:
        values |= {"base_model": run.base.name, "base_model_relation": "finetune" if run.merged else "adapter"}
    format = FORMATS.get(run.published.format) if run.published else None
    values["library_name"] = format.library if format else "peft"
    values["pipeline_tag"] = "text-generation"
    values |= license_fields(run.record.base.license)
    losses = [name for name in run.config.loss.loss_type if name != "sigmoid"]
    values["tags"] = ["qdpo", "dpo", *(["qlora"] if run.nf4 else []), "lora", "peft", *losses]
    if datasets := [part.name for part in (run.training, run.heldout) if part.on_hub]:
        values["datasets"] = list(dict.fromkeys(datasets))
    values["model-index"] = [{"name": md.one_line(run.title), "results": _results(run)}]
    return values


def license_fields(stated: str | None) -> dict[str, str]:
    """`license`, with `license_name` where the hub has no identifier for it; empty when the base states none."""
    if not (stated or "").strip():
        return {}
    name = md.without_folders(stated)
    if name.lower() in LICENSES:
        return {"license": name.lower()}
    return {"license": "other", "license_name": name}


def _results(run: Facts) -> list[dict[str, Any]]:
    found = [_training_results(run)]
    found += [_pair_results(run, name, result) for name, result in sorted(run.evaluations.items()) if name != TASKS]
    benchmarks = dig(run.evaluations.get(TASKS), "model_index")
    return [entry for entry in found if entry] + (benchmarks if isinstance(benchmarks, list) else [])


def _training_results(run: Facts) -> dict[str, Any] | None:
    metrics = [
        {"type": kind, "name": title, "value": round(value, 4)}
        for kind, title, key in RESULTS
        if (value := md.number(run.after.get(key))) is not None
    ]
    return {"task": dict(PREFERENCE), "dataset": _heldout(run), "metrics": metrics} if metrics else None


def _pair_results(run: Facts, name: str, result: dict[str, Any]) -> dict[str, Any] | None:
    """What `qdpo eval` found on pairs: how often the chosen side is the likelier one."""
    value = md.number(dig(result, "groups", "all", "prefers_chosen", "policy", "value"))
    if value is None:
        return None
    source = md.public_name(dig(result, "data", "source") or name)
    dataset = _heldout(run) if name == HELDOUT else {"name": source, "type": _type(name_on_hub(source), source)}
    metric = {"type": "accuracy", "name": "Prefers the chosen (by log-probability)", "value": round(value, 4)}
    return {"task": dict(PREFERENCE), "dataset": dataset, "metrics": [metric]}


def _heldout(run: Facts) -> dict[str, Any]:
    part = run.heldout
    dataset = {"name": f"{part.name} (held-out pairs)", "type": _type(part.on_hub, part.name)}
    return {**dataset, "split": md.without_folders(part.split)} if part.split else dataset


def _type(on_hub: bool, name: str) -> str:
    return name if on_hub else "preference-pairs"
