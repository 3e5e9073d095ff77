"""Benchmarks through lm-evaluation-harness on local tasks, without network."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from evaluation.local_tasks import AGREEMENT, WORD, pairs, write_tasks
from materials import MATERIAL, STORIES
from training.tiny import TinyRun

from qdpo.cli.main import main
from qdpo.evaluation import benchmarks, harness, tasks
from qdpo.evaluation.run_tasks import groups_of
from qdpo.evaluation.tasks_table import aligned, markdown
from qdpo.run.trained import load_trained

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs lm-evaluation-harness: pip install 'qdpo[eval]'"
)


@pytest.fixture
def include(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "tasks")


def right(model: Any, tokenizer: Any) -> list[bool]:
    """Which items of the agreement task a plain forward pass has right."""

    def logp(sentence: str) -> float:
        ids = torch.tensor([tokenizer.encode(sentence)])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        return float(logits.gather(1, ids[0, 1:, None]).sum())

    return [logp(row["sentence_good"]) > logp(row["sentence_bad"]) for row in pairs()]


@needs_lm_eval
def test_base_and_result_are_those_of_plain_passes_and_are_written_as_cards_show_them(
    run: TinyRun, include: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evaluation"
    command = ["eval", "--run", str(run.folder), "--tasks", f"{AGREEMENT},{WORD}", "--include", str(include)]
    assert main([*command, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert AGREEMENT in said.out
    found = json.loads((out / tasks.TASKS).read_text())
    entry, word = found["tasks"]
    trained = load_trained(run.folder)
    after = right(trained.policy, trained.tokenizer)
    with trained.policy.disable_adapter():
        before = right(trained.policy, trained.tokenizer)
    assert entry["base"]["value"] == pytest.approx(sum(before) / len(before))
    assert entry["result"]["value"] == pytest.approx(sum(after) / len(after))
    assert entry["paired"]["gained"] == sum(a and not b for b, a in zip(before, after, strict=True))
    assert entry["paired"]["lost"] == sum(b and not a for b, a in zip(before, after, strict=True))
    assert (entry["items"], entry["shots"], entry["limit"], entry["counts"]) == (8, 0, None, False)
    assert (word["task"], word["metric"], word["result"]["value"]) == (WORD, "exact_match", 0.0)
    assert set(found["models"]) == {"base", "result"}
    assert found["models"]["result"]["adapter_sha256"] == run.sha256
    index = found["model_index"][0]
    assert index["dataset"] == {
        "name": f"{AGREEMENT} (0-shot)",
        "type": AGREEMENT,
        "split": "validation",
        "args": {"num_few_shot": 0},
    }
    assert index["metrics"][0]["value"] == round(100 * entry["result"]["value"], 2)
    shown = (out / tasks.TABLES).read_text()
    assert "|Version|Filter|" in shown
    assert "load_in_4bit=True,dtype=float32), limit: None, num_fewshot: 0, batch_size: 8\n```\n|    Tasks" in shown

    # another number of shots is added, the same task is replaced, and a limited result stays out of the index
    assert main([*command[:4], AGREEMENT, *command[5:], "--shots", "1", "--out", str(out)]) == 0
    assert main([*command[:4], AGREEMENT, *command[5:], "--limit", "3", "--out", str(out)]) == 0
    assert main([*command[:4], AGREEMENT, *command[5:], "--out", str(out)]) == 0
    again = json.loads((out / tasks.TASKS).read_text())
    assert [(e["task"], e["shots"], e["limit"]) for e in again["tasks"]] == [
        (WORD, 0, None),
        (AGREEMENT, 1, None),
        (AGREEMENT, 0, 3),
        (AGREEMENT, 0, None),
    ]
    assert len(again["model_index"]) == 3


@needs_lm_eval
def test_a_real_model_without_a_run(include: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    command = ["eval", "--model", str(STORIES), "--tasks", AGREEMENT, "--include", str(include), "--out", str(tmp_path)]
    assert main([*command, "--set", "model.quantization=none", "--set", "data.template=none"]) == 0
    found = json.loads((tmp_path / tasks.TASKS).read_text())
    (entry,) = found["tasks"]
    expected = right(AutoModelForCausalLM.from_pretrained(STORIES), AutoTokenizer.from_pretrained(STORIES))
    assert entry["base"]["value"] == sum(expected) / len(expected)
    # it has read stories, and prefers grammatical sentences
    assert entry["base"]["value"] > 0.5
    assert (entry["result"], entry["paired"], found["model_index"]) == (None, None, [])
    assert "load_in_4bit=False" in found["models"]["base"]["description"]


@needs_lm_eval
def test_the_merged_form_gives_what_the_adapter_gives(run: TinyRun, include: Path, tmp_path: Path) -> None:
    command = ["eval", "--run", str(run.folder), "--tasks", AGREEMENT, "--include", str(include)]
    if not (run.folder / "export" / "safetensors").exists():
        assert main([*command, "--form", "merged"]) == 66
        assert main(["merge-export", "--run", str(run.folder), "--format", "safetensors", "--no-verify"]) == 0
    assert main([*command, "--form", "merged", "--out", str(tmp_path / "merged")]) == 0
    assert main([*command, "--out", str(tmp_path / "adapter")]) == 0
    merged, adapter = (json.loads((tmp_path / n / tasks.TASKS).read_text()) for n in ("merged", "adapter"))
    assert merged["form"] == "merged"
    assert merged["models"]["result"]["quantization"] == "none"
    for side in ("base", "result"):
        assert merged["tasks"][0][side] == adapter["tasks"][0][side]


@needs_lm_eval
@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["--tasks", "winogrand"], 64, "did you mean winogrande"),
        (["--tasks", "winogrande"], 69, "the data of winogrande cannot be had"),
        (["--tasks", AGREEMENT, "--include", "/nowhere"], 66, "no folder /nowhere"),
        (["--preset", "open-llm-v2"], 64, "known: open-llm-v1"),
        (["--tasks", " , "], 64, "names no task"),
    ],
)
def test_mistakes_are_said_before_a_model_is_loaded(
    arguments: list[str], code: int, part: str, run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--run", str(run.folder), *arguments]) == code
    said = capsys.readouterr().err
    assert part in said
    assert " in float32 on " not in said


def test_without_the_extra_the_way_to_it_is_said(
    run: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    assert main(["eval", "--run", str(run.folder), "--preset", "open-llm-v1"]) == 69
    assert "pip install 'qdpo[eval]'" in capsys.readouterr().err


def test_open_llm_v1_is_the_leaderboards_six_tasks_with_their_shots() -> None:
    assert groups_of([], None, "open-llm-v1") == {
        25: ["arc_challenge"],
        10: ["hellaswag"],
        5: ["mmlu", "winogrande", "gsm8k"],
        0: ["truthfulqa_mc2"],
    }


def entry(benchmark: benchmarks.Benchmark, value: float, **changes: Any) -> dict[str, Any]:
    made = {
        "task": benchmark.task,
        "title": benchmark.title,
        "version": "1.0",
        "shots": benchmark.shots,
        "filter": benchmark.filter,
        "metric": benchmark.metric,
        "depth": 0,
        "dataset": {"path": None, "config": None, "split": None},
        "batch_size": 8,
        "limit": None,
        "items": 100,
        "base": {"value": value - 0.01, "stderr": 0.01},
        "result": {"value": value, "stderr": 0.01},
        "paired": None,
        "counts": True,
    }
    return made | changes


def test_the_model_index_is_zephyr_gemmas() -> None:
    card = (MATERIAL / "cards" / "zephyr-7b-gemma-v0.1.md").read_text().split("---\n")[1]
    theirs = yaml.safe_load(card)["model-index"][0]["results"][1:]
    values = [result["metrics"][0]["value"] for result in theirs]
    ours = tasks.model_index([entry(b, v / 100) for b, v in zip(benchmarks.preset("open-llm-v1"), values, strict=True)])
    assert len(ours) == 6
    for our, their in zip(ours, theirs, strict=True):
        assert (our["task"], our["dataset"]) == (their["task"], their["dataset"])
        # the card leaves one name out
        assert our["metrics"][0] | {"name": None} == their["metrics"][0] | {"name": None}


def test_averages_need_every_task_whole() -> None:
    six = benchmarks.preset("open-llm-v1")
    whole = [entry(b, 0.5 + 0.01 * i) for i, b in enumerate(six)]
    assert tasks.averages(whole)["open-llm-v1"]["result"] == pytest.approx(52.5)
    assert tasks.averages(whole)["open-llm-v1"]["base"] == pytest.approx(51.5)
    assert tasks.averages(whole[1:]) == {}
    assert tasks.averages([*whole[1:], whole[0] | {"limit": 10}]) == {}
    assert len(tasks.model_index([*whole[1:], whole[0] | {"limit": 10}, whole[0] | {"depth": 1}])) == 5


def test_tables_line_up_and_groups_are_indented() -> None:
    table = aligned(("Tasks", "Value"), [("a", "0.5"), ("longer name", "12.25")])
    assert len({len(line) for line in table.splitlines()}) == 1
    assert table.splitlines()[1] == "|-----------|----:|"
    mmlu = benchmarks.preset("open-llm-v1")[2]
    member = entry(mmlu, 0.4, task="mmlu_anatomy", depth=2, result=None, counts=False)
    found = {"models": {"base": {"description": "hf (x)"}}, "tasks": [entry(mmlu, 0.6), member]}
    shown = markdown(found)
    assert "#### Base, 5-shot\n```\nhf (x), limit: None, num_fewshot: 5, batch_size: 8\n```" in shown
    assert "|  - mmlu_anatomy|" in shown


@pytest.mark.parametrize("content", ["{", '{"schema": 2, "tasks": []}', "[]", '{"schema": 1, "tasks": 3}'])
def test_a_file_that_cannot_be_added_to_is_replaced_and_that_is_said(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tasks.read(tmp_path) is None
    (tmp_path / tasks.TASKS).write_text(content)
    assert tasks.read(tmp_path) is None
    assert "cannot be read and is replaced" in capsys.readouterr().err
