"""The model card: structure as in the seeds' cards, every number from the files, nothing private, nothing invented."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from materials import MATERIAL

from qdpo.errors import InputMissingError
from qdpo.report.card import COLUMNS, render_card, write_card
from qdpo.run.record import read_run

CARDS = MATERIAL / "cards"

SECTIONS = [
    "# quickstart",
    "## Before and after",
    "## Verdict",
    "## How to use",
    "## Model description",
    "## Intended uses & limitations",
    "## Training and evaluation data",
    "## Training procedure",
    "### Training hyperparameters",
    "### Notes on the recipe",
    "### Checks that held when training started",
    "### Training results",
    "### Hardware, time and memory",
    "### Framework versions",
    "## Reproduce",
]


def headings(card: str) -> list[str]:
    """The headings outside of code blocks."""
    return re.findall(r"^#+ .*$", re.sub(r"^(```+).*?^\1$", "", card, flags=re.S | re.M), flags=re.M)


def front_matter(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("\n---\n")[0])


def section(card: str, heading: str) -> str:
    rest = card.split(f"\n{heading}\n", 1)[1]
    return re.split(r"^#+ ", rest, maxsplit=1, flags=re.M)[0].strip()


def table_rows(card: str) -> list[list[str]]:
    """The training-results table without its header and rule."""
    lines = [line for line in section(card, "### Training results").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_sections(card: Callable[[], str]) -> None:
    text = card()
    assert headings(text) == SECTIONS
    parents = ("# quickstart", "## Training procedure")
    for heading in SECTIONS:
        assert section(text, heading) or heading in parents, f"{heading} is empty"
    assert "More Information Needed" not in text
    assert "None" not in text
    assert "nan" not in text.lower().split()


@pytest.mark.parametrize("seed", ["juanako-7b-v1", "zephyr-7b-alpha", "zephyr-7b-gemma-v0.1"])
def test_sections_and_columns_as_in_the_seeds(card: Callable[[], str], seed: str) -> None:
    text, model = card(), (CARDS / f"{seed}.md").read_text()
    wanted = [h for h in headings(model) if h in SECTIONS]
    assert len(wanted) >= 4
    assert [h for h in headings(text) if h in wanted] == wanted, "the same order"
    (header,) = re.findall(r"^\| Training Loss .*$", model, flags=re.M)
    columns = tuple(cell.strip() for cell in header.strip("|").split("|"))
    assert columns == COLUMNS
    assert "It achieves the following results on the evaluation set" in text
    results = [line.split(":")[0] for line in re.findall(r"^- (?:Loss|Rewards/|Logps/|Logits/).*$", text, flags=re.M)]
    theirs = [line.split(":")[0] for line in re.findall(r"^- (?:Loss|Rewards/|Logps/|Logits/).*$", model, flags=re.M)]
    assert results == theirs


def test_lora_settings_as_in_the_garrulus_card(example: Any) -> None:
    example.use_hub_base()
    example.config["train"] |= {"max_steps": 200, "learning_rate": 5e-5, "warmup_steps": 100}
    example.config["data"] |= {"max_prompt_length": 1024, "max_length": 1536}
    lines = set(render_card(example.write()).splitlines())
    seed = (CARDS / "udkai-garrulus.md").read_text()
    lora = seed.split("**LoRA**:\n")[1].split("\n\n")[0].splitlines()
    assert len(lora) == 6
    # The modules are a set: their order has no meaning.
    assert {line for line in lora if "target_modules" not in line} <= lines
    assert {"* beta=0.1", "* max_prompt_length=1024", "* max_length=1536"} <= lines
    assert "- lr_scheduler_warmup_steps: 100" in lines


def test_front_matter_of_the_quickstart(card: Callable[[], str]) -> None:
    text = card()
    values = front_matter(text)
    assert values["library_name"] == "peft"
    assert values["pipeline_tag"] == "text-generation"
    assert values["license"] == "apache-2.0"
    assert values["tags"] == ["qdpo", "dpo", "qlora", "lora", "peft"]
    assert "base_model" not in values, "the hub would take the name for somebody else's repository"
    assert "datasets" not in values
    assert "**`base_model` in the metadata:** left out" in text
    assert "demonstration model" in text


def test_front_matter_of_a_hub_base(example: Any) -> None:
    example.use_hub_base()
    text = render_card(example.write())
    values = front_matter(text)
    assert values["base_model"] == "mlabonne/NeuralMarcoro14-7B"
    assert values["base_model_relation"] == "adapter"
    assert values["datasets"] == ["hromi/winograd_dpo_basic"]
    assert "[mlabonne/NeuralMarcoro14-7B](https://huggingface.co/mlabonne/NeuralMarcoro14-7B)" in text
    assert "demonstration" not in text.lower().replace("a demonstration: a small model", "").replace(
        "embedded demonstration model on embedded pairs", ""
    )


def test_the_hub_library_accepts_it(example: Any) -> None:
    example.use_hub_base()
    card = ModelCard(render_card(example.write()))
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results == {"Rewards/accuracies": 0.9, "Rewards/margins": 2.4, "Loss": round(math.log1p(math.exp(-2.4)), 4)}
    assert card.data.model_name == "quickstart"
    assert card.data.eval_results[0].dataset_type == "hromi/winograd_dpo_basic"


@pytest.mark.parametrize(
    ("stated", "fields"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("my own terms", {"license": "other", "license_name": "my own terms"}),
        (None, {}),
        ("", {}),
    ],
)
def test_license(example: Any, stated: str | None, fields: dict[str, str]) -> None:
    example.run["base"]["license"] = stated
    text = render_card(example.write())
    assert {k: v for k, v in front_matter(text).items() if k.startswith("license")} == fields
    if not fields:
        assert "- **License:** not stated here, because" in text


def test_results_table(card: Callable[[], str]) -> None:
    rows = table_rows(card())
    assert [row[2] for row in rows] == ["0", "40", "80", "120"]
    assert all(len(row) == len(COLUMNS) == 12 for row in rows)
    assert rows[0][0] == "No log"
    for row in rows:
        assert float(row[7]) == pytest.approx(float(row[4]) - float(row[5]), abs=1e-4), "margins = chosen - rejected"


def test_training_loss_is_the_last_one_logged(example: Any) -> None:
    example.lines = [line for line in example.lines if line["step"] != 40 or "eval_loss" in line]
    example.line(35, heldout=False)["loss"] = 0.123456
    assert table_rows(render_card(example.write()))[1][0] == "0.1235"


@pytest.mark.parametrize(("key", "column"), [(c.lower(), i) for i, c in enumerate(COLUMNS) if i > 3])
def test_every_number_of_the_table_comes_from_the_metrics(example: Any, key: str, column: int) -> None:
    example.line(80, heldout=True)[f"eval_{key}"] = 7.65432
    rows = table_rows(render_card(example.write()))
    assert rows[2][column] == "7.6543"
    assert sum(row.count("7.6543") for row in rows) == 1


def test_results_are_those_of_the_adapter(example: Any) -> None:
    """With `load_best` the adapter can come from an earlier step than the last."""
    example.config["train"]["load_best"] = "accuracy"
    example.run["result"]["adapter_step"] = 80
    example.line(80, heldout=True)["eval_loss"] = 0.4321
    text = render_card(example.write())
    assert "- Loss: 0.4321" in text
    assert "| After (step 80) |" in text
    assert {"type": "loss", "name": "Loss", "value": 0.4321} in front_matter(text)["model-index"][0]["results"][0][
        "metrics"
    ]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda e: e.run["result"].update(seconds=3725), "1 h 2 min 5 s"),
        (
            lambda e: e.run["result"].update(peak_memory_bytes=3 << 29),
            "1.50 GiB of the process' own, without mapped files",
        ),
        (lambda e: e.run["base"].update(parameters=7241732096), "7,241,732,096"),
        (lambda e: e.run["adapter"].update(trainable_parameters=41943040), "41,943,040 trainable parameters"),
        (lambda e: e.run["versions"].update(torch="2.99.1"), "- Pytorch 2.99.1"),
        (lambda e: e.data["train"].update(rows_read=12859), "12,859"),
        (lambda e: e.data["heldout"]["cut"].update(prompt=321), "321"),
        (
            lambda e: e.line(0, heldout=True).update(eval_text_nll=1.75),
            "from 1.7500 to 2.1000 nats per token (+20.0 %)",
        ),
        (
            lambda e: e.config["lora"].update(r=128) if "lora" in e.config else e.config.update(lora={"r": 128}),
            "* r=128",
        ),
        (lambda e: e.config.update(loss={"beta": 0.037}), "* beta=0.037"),
        (lambda e: e.config["train"].update(learning_rate=5e-7), "- learning_rate: 5e-07"),
        (lambda e: e.config["train"].update(warmup_ratio=0.1), "- lr_scheduler_warmup_ratio: 0.1"),
        (lambda e: e.run.update(command="qdpo train --preset p --set train.seed=7"), "--set train.seed=7"),
        (lambda e: e.run["hardware"].update(kind="cuda", capability=[8, 6]), "compute capability 8.6"),
        (
            lambda e: e.run.update(optimizer={"name": "adamw_torch", "reason": "no paging on a CPU"}),
            "(no paging on a CPU)",
        ),
    ],
)
def test_numbers_follow_the_files(example: Any, change: Callable[[Any], None], wanted: str) -> None:
    before = render_card(example.write())
    change(example)
    after = render_card(example.write())
    assert wanted not in before
    assert wanted in after


def test_missing_and_non_finite_values_are_not_invented(example: Any) -> None:
    example.line(120, heldout=True)["eval_rewards/margins"] = math.nan
    del example.line(120, heldout=True)["eval_logits/chosen"]
    del example.run["result"]["seconds"]
    text = render_card(example.write())
    last = table_rows(text)[-1]
    assert last[7] == last[11] == "n/a"
    assert "- Rewards/margins: n/a" in text
    assert "- Time: n/a for 120 steps" in text
    names = [m["name"] for m in front_matter(text)["model-index"][0]["results"][0]["metrics"]]
    assert names == ["Rewards/accuracies", "Loss"]


def test_run_that_has_not_begun(example: Any) -> None:
    example.lines, example.data = [], None
    example.run |= {"state": "running", "result": None}
    text = render_card(example.write())
    assert "The run is not finished" in text
    assert "no results are stated" in text
    assert "## Before and after" not in text
    assert section(text, "### Training results") == "No evaluation was logged."
    assert front_matter(text)["model-index"] == [{"name": "quickstart", "results": []}]
    assert ModelCard(text).data.library_name == "peft"


def test_accuracy_of_ties_is_explained(example: Any) -> None:
    assert "no pair is won" not in render_card(example.write())
    example.line(0, heldout=True)["eval_rewards/accuracies"] = 0.0
    text = render_card(example.write())
    assert "no pair is won" in text
    assert table_rows(text)[0][6] == "0.0000", "the number itself is shown as it was logged"


def test_paging_is_not_claimed_on_a_cpu(example: Any) -> None:
    example.config.setdefault("train", {})["optim"] = "paged_adamw_32bit"
    assert "(without paging, which needs CUDA)" in render_card(example.write())
    example.run["hardware"]["kind"] = "cuda"
    assert "without paging" not in render_card(example.write())


def test_text_without_likelihoods(example: Any) -> None:
    for line in example.lines:
        line.pop("eval_text_nll", None)
    assert "Forgetting was not measured" in render_card(example.write())


def test_plots_are_shown_only_when_they_exist(example: Any) -> None:
    folder = example.write()
    assert "plots/" not in render_card(folder)
    (folder / "plots").mkdir()
    (folder / "plots" / "loss.png").write_bytes(b"")
    assert re.findall(r"!\[.*?\]\((.*?)\)", render_card(folder)) == ["plots/loss.png"]


def test_no_folder_of_this_machine(example: Any) -> None:
    base, data = "/home/someone/models/my-base", "/home/someone/my data/pairs.jsonl"
    example.run["base"] |= {"name": base, "folder": base, "license": "see /home/someone/LICENSE"}
    example.run["command"] = (
        f"/home/someone/venv/bin/qdpo train --model {base} --data '{data}' --set data.text=~/t.jsonl"
    )
    example.run["data"]["train"] |= {"name": data, "split": "/home/someone/split"}
    example.run["checks"] = [{"name": "base", "detail": f"loaded from {base}."}]
    example.config["notes"] = [f"Trained on {data.replace(' ', '-')}, see https://example.org/a/b."]
    example.config["model"] |= {"name": base, "adapter": "/home/someone/adapter-1"}
    example.config["data"] |= {"name": data, "eval_name": "C:\\Users\\someone\\eval.csv"}
    example.data["train"]["left_out"] = {f"bad row in {base}": {"count": 1, "first_rows": []}}
    text = render_card(example.write())
    assert "someone" not in text
    assert "/home" not in text
    assert "~/" not in text
    assert str(example.folder) not in text
    assert "`my-base` (a local folder)" in text
    assert "qdpo train --model my-base --data pairs.jsonl --set data.text=t.jsonl" in text
    assert "https://example.org/a/b" in text
    assert "base_model" not in front_matter(text)
    assert "adapter-1" in text


EVIL = "x: y\n---\n# pwned | <script>alert(1)</script> ``` ![i](http://e.org/i) {{ a }} $x$ *b* _c_"


def test_names_and_data_cannot_break_the_card(example: Any) -> None:
    example.run |= {"name": EVIL, "command": f"qdpo train --data {json.dumps(EVIL)}", "state": EVIL}
    example.run["base"] |= {"name": EVIL, "license": EVIL, "architecture": EVIL}
    example.run["versions"]["torch"] = EVIL
    example.run["hardware"]["name"] = EVIL
    for part in ("train", "heldout"):
        example.run["data"][part] |= {"name": EVIL, "split": EVIL}
        example.data[part] |= {"format": EVIL, "left_out": {EVIL: {"count": 1, "first_rows": [EVIL]}}}
    example.config |= {"about": EVIL, "notes": [EVIL]}
    example.config["model"]["name"] = EVIL
    example.config["data"] |= {"name": EVIL}
    text = render_card(example.write())
    front_matter(text)
    assert ModelCard(text).data.license == "other"
    assert headings(text)[1:] == SECTIONS[1:]
    prose = re.sub(r"^(```+).*?^\1$", "", text.split("\n---\n", 1)[1], flags=re.S | re.M)
    prose = re.sub(r"(`+).*?\1", "", prose)
    assert "<script" not in prose
    assert "![i](" not in prose
    assert len(table_rows(text)) == 4
    data = [line for line in section(text, "## Training and evaluation data").splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in data} == {4}


def test_snippet_is_python(example: Any) -> None:
    for change in (lambda: None, example.use_hub_base):
        change()
        snippet = re.search(r"```python\n(.*?)\n```", render_card(example.write()), flags=re.S)
        assert snippet is not None
        ast.parse(snippet[1])
    assert 'revision="0123456789abcdef' in snippet[1]
    example.config["data"]["template"] = "none"
    assert "apply_chat_template" not in render_card(example.write())


def test_embedded_base_lies_where_the_snippet_looks(card: Callable[[], str]) -> None:
    from qdpo.model.source import ASSETS, find

    assert find("quickstart").folder == ASSETS / "base"
    assert 'str(files("qdpo") / "assets" / "base")' in card()


def test_write_card(example: Any) -> None:
    folder = example.write()
    write_card(folder)
    assert (folder / "README.md").read_text() == render_card(folder)


def test_not_a_run_directory(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match=r"config\.yaml"):
        render_card(tmp_path)


def test_resumed_and_torn_metrics(example: Any) -> None:
    """A step that was logged twice counts once, the later time; a last line that a kill cut is left out."""
    folder = example.write()
    again = json.dumps(example.line(120, heldout=True) | {"eval_loss": 0.1111})
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text() + again + "\n" + '{"step": 125, "lo')
    record = read_run(folder)
    assert record.after["loss"] == 0.1111
    assert record.train[-1]["step"] == 120
    path.write_text('{"step": 125, "lo\n' + path.read_text())
    with pytest.raises(InputMissingError, match=r"metrics\.jsonl:1"):
        read_run(folder)


def test_config_as_qdpo_writes_it(example: Any) -> None:
    """The resolved configuration with its comments is read back, numbers as numbers."""
    from qdpo.config.resolve import resolve, to_yaml

    folder = example.write()
    (folder / "config.yaml").write_text(to_yaml(resolve("quickstart", ["train.learning_rate=5.0e-7"])))
    assert "- learning_rate: 5e-07" in render_card(folder)
