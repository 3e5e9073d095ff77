"""The card after `qdpo eval` and `qdpo merge-export`: results, samples, exports with their figures, and for the hub."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from materials import MATERIAL
from report import extras

from qdpo.report.card import render_card
from qdpo.run.record import Published

CARDS = MATERIAL / "cards"
TEXTS = [
    ("Who ate the cake?", "The cake ate.", "The dog ate the cake."),
    ("Say nothing.", "Nothing.", "Nothing."),
    ("```\n# not a heading\n```", "a | b", "<script>alert(1)</script>"),
]


@pytest.fixture
def full(example: Any) -> Path:
    """A run with everything that other verbs add."""
    example.use_hub_base()
    folder = example.write()
    extras.write_samples(folder, TEXTS)
    extras.write_heldout(folder)
    extras.write_heldout(folder, "pairs-blimp.json", "/home/someone/blimp.jsonl")
    extras.write_tasks(folder)
    extras.write_export(folder, "safetensors", {"model.safetensors": b"1"}, dtype="bfloat16")
    extras.write_export(folder, "gguf", {"toy-q4_k_m.gguf": b"2"}, files={"toy-q4_k_m.gguf": "Q4_K_M"})
    extras.write_export(
        folder, "ollama", {"toy.gguf": b"3", "Modelfile": b"4"}, verified=False, files={"toy.gguf": "q8_0"}
    )
    return folder


def headings(card: str) -> list[str]:
    return re.findall(r"^#+ .*$", re.sub(r"^(```+).*?^\1$", "", card, flags=re.S | re.M), flags=re.M)


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("\n---\n")[0])


def test_sections(full: Path) -> None:
    found = headings(render_card(full))
    wanted = [
        *("## Before and after", "## Verdict", "## How to use", "### GGUF for llama.cpp", "### Ollama"),
        *("### Merged model", "## Samples", "## Evaluation", "### Held-out pairs", "### Benchmarks"),
        *("#### Base, 5-shot", "#### Result, 5-shot", "### Pairs of blimp.jsonl", "## Exports and their verification"),
        *("### Export: gguf", "### Export: ollama", "### Export: safetensors", "## Model description"),
    ]
    assert [heading for heading in wanted if heading not in found] == []
    assert "someone" not in render_card(full)


def test_benchmark_tables_as_in_juanako(full: Path) -> None:
    seed = (CARDS / "juanako-7b-v1.md").read_text()
    theirs = [line for line in seed.splitlines() if re.match(r"^\|\s*Tasks\s*\|Version\|", line)]
    columns = {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in theirs}
    ours = [line for line in render_card(full).splitlines() if re.match(r"^\|\s*Tasks\s*\|", line)]
    assert {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in ours} == columns
    assert "hf (pretrained=base,dtype=float32), limit: None, num_fewshot: 5" in render_card(full)


def test_model_index_as_in_zephyr_gemma(full: Path) -> None:
    seed = front((CARDS / "zephyr-7b-gemma-v0.1.md").read_text())["model-index"][0]["results"]
    theirs = next(entry for entry in seed if entry["dataset"]["name"] == "Winogrande (5-shot)")
    ours = front(render_card(full))["model-index"][0]["results"]
    (found,) = [entry for entry in ours if entry["dataset"]["name"] == "Winogrande (5-shot)"]
    assert found["dataset"] == theirs["dataset"]
    assert found["task"] == theirs["task"]
    assert found["metrics"] == [{"type": "acc", "value": 75.61, "name": "accuracy"}]


def test_the_hub_library_reads_every_result(full: Path) -> None:
    text = render_card(full)
    data = ModelCard(text).data
    found = {(result.dataset_name, result.metric_type): result.metric_value for result in data.eval_results}
    assert found["Winogrande (5-shot)", "acc"] == 75.61
    assert ("blimp.jsonl", "accuracy") in found
    assert not any("HellaSwag" in name for name, _ in found), "a limited result is no benchmark result"
    assert not re.search(r"[&*]id\d", text.split("\n---\n")[0]), "no YAML references"


def test_results_that_cannot_be_read_are_named(full: Path) -> None:
    (full / "evaluation" / "heldout.json").write_text('{"schema": 9}')
    assert "`heldout.json` is of another version" in render_card(full)


def test_samples_are_shown_as_they_are(full: Path) -> None:
    text = render_card(full)
    part = text.split("## Samples\n")[1].split("\n## ")[0]
    assert "Greedy answers at step 120, 3 prompts" in part
    assert "**Base and result alike**\n\n```text\nNothing.\n```" in part
    assert "````text\n```\n# not a heading\n```\n````" in part, "a longer fence"
    assert "# not a heading" not in headings(text)


def test_long_samples_are_cut(full: Path) -> None:
    extras.write_samples(full, [("word " * 1000, "a", "b")] * 9)
    part = render_card(full).split("## Samples\n")[1].split("\n## ")[0]
    assert "4 of 9 prompts" in part
    assert len(part) < 6000


def test_exports_with_figures_and_commands(full: Path) -> None:
    text = render_card(full)
    assert "`toy-q4_k_m.gguf`: verified, 64 held-out pairs." in text
    assert "| exported | 95.0% | +1.250 | 0.0026 | 99.0% | 3.500 | llama.cpp |" in text
    assert "Not verified: nothing is known" in text, "the Ollama export"
    assert "llama-cli -m export/gguf/toy-q4_k_m.gguf" in text
    assert "vllm serve export/safetensors" in text
    assert "ollama create quickstart -f export/ollama/Modelfile" in text
    assert "`qdpo merge-export --run DIR --format gguf --quant q4_k_m`" in text


def test_no_exports_no_section(example: Any) -> None:
    text = render_card(example.write())
    assert "## Exports" not in text
    assert "qdpo merge-export --run DIR" in text


@pytest.mark.parametrize(
    ("format", "library", "relation", "wanted", "unwanted"),
    [
        ("adapter", "peft", "adapter", 'PeftModel.from_pretrained(model, "me/toy")', "llama-cli"),
        ("safetensors", "transformers", "finetune", 'from_pretrained("me/toy", dtype="auto"', "PeftModel"),
        ("gguf", "gguf", "finetune", "hf download me/toy --local-dir quickstart", "PeftModel"),
        ("ollama", "gguf", "finetune", "-f quickstart/Modelfile", "PeftModel"),
    ],
)
def test_a_card_for_the_hub(full: Path, format: str, library: str, relation: str, wanted: str, unwanted: str) -> None:
    text = render_card(full, Published("me/toy", format))
    values = front(text)
    assert (values["library_name"], values["base_model_relation"]) == (library, relation)
    assert wanted in text
    assert unwanted not in text
    assert "export/" not in text
    for snippet in re.findall(r"```python\n(.*?)\n```", text, flags=re.S):
        ast.parse(snippet)
    assert ("merged into it" in text) == (format != "adapter")


def test_tokens_are_never_shown(example: Any) -> None:
    secret = "hf_" + "AbCdEfGhIjKlMnOpQrSt"
    example.use_hub_base()
    example.run["command"] = f"qdpo train --preset p --set model.name=https://user:{secret}@huggingface.co/x"
    example.config["notes"] = [f"pushed with {secret}"]
    example.data["train"]["format_reason"] = secret
    folder = example.write()
    extras.write_samples(folder, [(f"my token is {secret}", secret, "sk-abcdefghijklmnopqrst")])
    text = render_card(folder)
    assert secret not in text
    assert "sk-abc" not in text
    assert "[token removed]" in text
