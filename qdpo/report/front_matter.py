"""The YAML block at the head of a model card, as the Hugging Face hub reads it."""

from __future__ import annotations

from typing import Any

import yaml

from qdpo.report import markdown as md
from qdpo.report import names
from qdpo.run.record import RunRecord, dig
from qdpo.verdicts.measured import HELDOUT, read_evaluations

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

LIBRARIES = {
    "safetensors": "transformers",
    "awq": "transformers",
    "gguf": "gguf",
    "gguf-lora": "gguf",
    "ollama": "gguf",
}
"""What loads a published export, by the hub's names; adapters are PEFT's."""

# Where the hub shows results: type, name, key of the evaluation.
RESULTS = (
    ("accuracy", "Rewards/accuracies", "rewards/accuracies"),
    ("rewards/margins", "Rewards/margins", "rewards/margins"),
    ("loss", "Loss", "loss"),
)

PREFERENCE = {"type": "text-generation", "name": "Preference modelling on held-out pairs"}
TASKS = "tasks.json"


def front_matter(record: RunRecord) -> str:
    """The block with its `---` lines; what is not known is left out."""
    dumped = yaml.safe_dump(metadata(record), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{dumped}---"


def metadata(record: RunRecord) -> dict[str, Any]:
    """The block as a mapping.

    A base or dataset that is not on the hub is left out: the hub would take its name for somebody else's repository.
    """
    values: dict[str, Any] = {}
    if names.base_on_hub(record):
        relation = "finetune" if record.merged else "adapter"
        values |= {"base_model": names.base_name(record), "base_model_relation": relation}
    values["library_name"] = LIBRARIES.get(record.published.format, "peft") if record.published else "peft"
    values["pipeline_tag"] = "text-generation"
    values |= license_fields(dig(record.run, "base", "license"))
    values["tags"] = _tags(record)
    datasets = [name for name in dict.fromkeys(_dataset_names(record)) if names.dataset_on_hub(name)]
    if datasets:
        values["datasets"] = datasets
    values["model-index"] = [{"name": md.one_line(record.name), "results": _results(record)}]
    return values


def license_fields(license_name: Any) -> dict[str, str]:
    """`license`, with `license_name` where the hub has no identifier for it; empty when the base states none."""
    if not isinstance(license_name, str) or not license_name.strip():
        return {}
    name = md.without_folders(license_name)
    if name.lower() in LICENSES:
        return {"license": name.lower()}
    return {"license": "other", "license_name": name}


def _tags(record: RunRecord) -> list[str]:
    tags = ["qdpo", "dpo", "lora", "peft"]
    if dig(record.run, "quantization", "method") == "nf4":
        tags.insert(2, "qlora")
    return tags + [name for name in record.config.loss.loss_type if name != "sigmoid"]


def _dataset_names(record: RunRecord) -> list[str]:
    return [names.dataset_name(record, "train"), names.dataset_name(record, "heldout")]


def _results(record: RunRecord) -> list[dict[str, Any]]:
    evaluations = read_evaluations(record.folder)
    found = [_training_results(record)]
    found += [_pair_results(record, name, result) for name, result in evaluations.items() if name != TASKS]
    benchmarks = dig(evaluations.get(TASKS), "model_index")
    return [entry for entry in found if entry] + (benchmarks if isinstance(benchmarks, list) else [])


def _training_results(record: RunRecord) -> dict[str, Any] | None:
    metrics = [
        {"type": kind, "name": title, "value": round(value, 4)}
        for kind, title, key in RESULTS
        if (value := md.number(record.after.get(key))) is not None
    ]
    if not metrics:
        return None
    return {"task": dict(PREFERENCE), "dataset": _heldout(record), "metrics": metrics}


def _pair_results(record: RunRecord, name: str, result: dict[str, Any]) -> dict[str, Any] | None:
    """What `qdpo eval` found on pairs: how often the chosen side is the likelier one."""
    value = md.number(dig(result, "groups", "all", "prefers_chosen", "policy", "value"))
    if value is None:
        return None
    source = md.public_name(dig(result, "data", "source") or name)
    dataset = {"name": source, "type": source if names.dataset_on_hub(source) else "preference-pairs"}
    metric = {"type": "accuracy", "name": "Prefers the chosen (by log-probability)", "value": round(value, 4)}
    return {"task": dict(PREFERENCE), "dataset": _heldout(record) if name == HELDOUT else dataset, "metrics": [metric]}


def _heldout(record: RunRecord) -> dict[str, Any]:
    name = names.dataset_name(record, "heldout")
    dataset = {"name": f"{name} (held-out pairs)", "type": name if names.dataset_on_hub(name) else "preference-pairs"}
    split = dig(record.run, "data", "heldout", "split")
    if split:
        dataset["split"] = md.without_folders(split)
    return dataset
