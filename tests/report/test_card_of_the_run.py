"""The card says what was run, not what a preset says of itself; its visible part is short."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from report import extras
from report.conftest import Run

from qdpo.config.resolve import resolve, to_yaml
from qdpo.report.card import render_card
from qdpo.report.page import render_page
from qdpo.run.recipe import recipe_of

FOLDED = re.compile(r"<details>.*?</details>\n", flags=re.S)
OTHER = ("model.name=/home/someone/my-base", "model.revision=null", "data.name=/home/someone/mine.jsonl")


def lines_seen(card: str) -> int:
    """Lines of a card, front matter included, of which a folded part counts as one."""
    return FOLDED.sub("folded\n", card).count("\n")


@pytest.fixture
def of_a_preset(example: Run) -> Any:
    """Writes the example as a run of garrulus-a40 with overrides, and gives its card and its page."""

    def written(*overrides: str, kept: bool = True) -> tuple[str, str]:
        resolved = resolve("garrulus-a40", overrides)
        example.run |= {"name": "garrulus-a40", "preset": "garrulus-a40", "command": "qdpo train"}
        if kept:
            example.run["recipe"] = recipe_of("garrulus-a40", resolved).model_dump()
        example.use_hub_base(resolved.config.model.name, resolved.config.data.name)
        if "/" in resolved.config.model.name[:1]:
            example.run["base"]["revision"] = None
        folder = example.write()
        (folder / "config.yaml").write_text(to_yaml(resolved))
        return render_card(folder), render_page(folder)

    return written


@pytest.mark.parametrize("kept", [True, False], ids=["kept in run.json", "by the origins in config.yaml"])
def test_nothing_of_a_preset_that_was_taken_for_other_pairs(of_a_preset: Any, kept: bool) -> None:
    card, page = of_a_preset(*OTHER, "data.template=chatml", "train.max_steps=7", "data.contamination=[]", kept=kept)
    for text in (card, page):
        assert not re.search(r"winogrande|contaminat|garrulus'|the card's|\budkai", text, flags=re.I)
        assert "someone" not in text
    assert "\n# my-base tuned on mine.jsonl\n" in card
    assert "- name: my-base tuned on mine.jsonl\n" in card
    assert (
        "The recipe: from preset `garrulus-a40`, changed: `model` (`my-base`), `data` (`mine.jsonl`), "
        "`data.template` (`chatml`), `train.max_steps` (`7`)." in card
    )
    assert "The notes of the preset `garrulus-a40` are about the recipe as it ships" in card
    assert "<h1>my-base tuned on mine.jsonl</h1>" in page
    assert "from preset garrulus-a40, changed: model (my-base), data (mine.jsonl)" in page


def test_everything_of_a_preset_as_it_ships(of_a_preset: Any) -> None:
    card, page = of_a_preset()
    assert "\n# garrulus-a40\n" in card
    assert "The recipe in a line: UDKai" in card
    assert "intentionally contaminated" in card
    assert "are left out" not in card
    assert "<h1>garrulus-a40</h1>" in page
    assert "pairs made from Winogrande train" in page


def test_a_changed_rate_keeps_the_name_and_drops_the_description(of_a_preset: Any) -> None:
    card, _ = of_a_preset("train.learning_rate=1e-3")
    assert "\n# garrulus-a40\n" in card
    assert "changed: `train.learning_rate` (`0.001`)." in card
    assert "the card's hyperparameters" not in card


def process(**values: Any) -> dict[str, Any]:
    return {
        **{"command": "qdpo train --preset quickstart", "began": "2026-01-02T03:04:05Z", "device": "Example CPU"},
        **{"from_step": 0, "to_step": 70, "seconds": 3600.0, "peak_memory_bytes": 3 << 30, "state": "stopped"},
        **values,
    }


def test_time_and_memory_of_all_processes(example: Run) -> None:
    second = {"command": "qdpo train --run-dir r --resume", "from_step": 70, "to_step": 120, "state": "finished"}
    example.run["processes"] = [process(), process(**second, seconds=125.0, peak_memory_bytes=1 << 30)]
    folder = example.write()
    card, page = render_card(folder), render_page(folder)
    assert "- Time: 1 h 2 min 5 s for 120 steps (2.00 epochs, 98,765 tokens), in 2 processes together" in card
    assert "- Peak memory: 3.00 GiB of the process' own, without mapped files, the largest of its processes" in card
    assert re.search(r"\| 2026-01-02T03:04:05Z \| Example CPU \| 70 +\| 120 +\| 2 min 5 s", card)
    assert "qdpo train --preset quickstart\nqdpo train --run-dir r --resume\n" in card
    assert "1 h 2 min 5 s" in page
    assert "3.00 GiB" in page
    example.run["processes"][0]["state"] = "running"
    assert "- Time: at least 1 h 2 min 5 s" in render_card(example.write())


def test_two_devices_are_both_named(example: Run) -> None:
    example.run["processes"] = [process(device="Old card"), process(device="Example CPU", state="finished")]
    assert "- Hardware: Old card, then Example CPU; the last with 8.00 GiB of memory" in render_card(example.write())


def test_what_a_resume_changed(example: Run) -> None:
    entry = {"key": "train.max_steps", "old": 60, "new": 120}
    example.run["changes"] = [
        {"after_step": 50, "changed": [entry, {"key": "model.name", "old": "/a/b", "new": "/c/d"}]}
    ]
    card = render_card(example.write())
    assert "- Changed after step 50: `train.max_steps` from `60` to `120`\n" in card
    assert "- Changed after step 50: `model.name` from `b` to `d`\n" in card


def test_two_examples_of_what_changed(example: Run) -> None:
    folder = example.write()
    texts = [("Same?", "a", "a"), ("One?", "b", "c"), ("Two?", "d\n\ne\nf\ng\nh", "i" * 999), ("Three?", "j", "k")]
    extras.write_samples(folder, texts)
    card = render_card(folder)
    assert "Greedy answers at step 120, 4 prompts; different from the base's: 3. 4 written answers: " in card
    assert "The first two, shortened:" in card
    seen = FOLDED.sub("", card)
    assert "```text\nPROMPT  One?\nBASE    b\nRESULT  c\n```" in seen
    assert f"```text\nPROMPT  Two?\nBASE    d\ne\nf [...]\nRESULT  {'i' * 240} [...]\n```" in seen
    assert "Three?" not in seen
    extras.write_samples(folder, texts[:1])
    assert "1 prompts; different from the base's: 0. 1 written answers: " in render_card(folder)


def test_a_long_prompt_shows_its_end(example: Run) -> None:
    folder = example.write()
    extras.write_samples(folder, [("system " * 100 + "\nWhat is asked?", "a", "b")])
    assert "system system\nWhat is asked?\nBASE" in FOLDED.sub("", render_card(folder))


def full(example: Run) -> Path:
    """A run with everything, and long."""
    example.config["notes"] = [f"note {i}" for i in range(40)]
    example.data["train"]["left_out"] = {f"reason {i}": {"count": 1, "first_rows": [1]} for i in range(40)}
    example.run["checks"] = [{"name": f"check {i}", "detail": "fine"} for i in range(40)]
    example.run["changes"] = [{"after_step": i, "changed": [{"key": "seed", "old": 1, "new": 2}]} for i in range(40)]
    example.run["processes"] = [process() for _ in range(40)]
    folder = example.write()
    extras.write_samples(folder, [("q\n" * 50, "a\n" * 50, "b\n" * 50)] * 9)
    extras.write_heldout(folder)
    extras.write_tasks(folder)
    for name in ("safetensors", "gguf", "ollama"):
        extras.write_export(folder, name, {"toy.gguf": b"2"}, files={"toy.gguf": "Q4_K_M"})
    return folder


def test_what_is_seen_is_short(example: Run) -> None:
    assert lines_seen(render_card(example.write())) <= 150
    card = render_card(full(example))
    assert card.count("\n") > 500, "all of it is there"
    assert lines_seen(card.split("\n---\n", 1)[1]) <= 150


def test_what_is_folded_is_markdown(example: Run) -> None:
    body = render_card(full(example)).split("\n---\n", 1)[1]
    page = MarkdownIt("commonmark").enable("table").render(body)
    assert page.count("<details>") == page.count("</details>") == body.count("<details>") > 10
    # every heading and every row of a table that Markdown has is one in HTML too
    prose = re.sub(r"^(```+).*?^\1$", "", body, flags=re.S | re.M)
    assert len(re.findall(r"^#+ ", prose, flags=re.M)) == len(re.findall(r"<h\d>", page))
    assert len(re.findall(r"^\|(?![ :-]*-[-:| ]*\|$)", prose, flags=re.M)) == page.count("<tr>")
