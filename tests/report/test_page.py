"""The report page: whole, bounded, private; nothing in the data can become markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report import extras

from qdpo.errors import InputMissingError
from qdpo.report import page_data
from qdpo.report.card import render_card
from qdpo.report.page import render_page, write_page

EVIL = "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\"> & \u2028 '\""
TEXTS = [(f"prompt {i} {EVIL}", f"chosen {i} {EVIL}", f"rejected {i} {EVIL}") for i in range(50)]


class Elements(HTMLParser):
    """What elements a page has, with their attributes, and the text of its data."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.data, self._inside = "", False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the element."""
        self.found.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id") == "report-data"

    def handle_data(self, data: str) -> None:
        """Keep the data."""
        if self._inside:
            self.data += data

    def handle_endtag(self, tag: str) -> None:
        """The data ends."""
        self._inside = False


@pytest.fixture
def hostile(example: Any) -> Path:
    """A run in which every text that comes from data tries to be markup."""
    example.run |= {"name": EVIL, "command": f"qdpo train --data {json.dumps(EVIL)}", "state": EVIL, "created": EVIL}
    example.run["hardware"]["name"] = EVIL
    example.run["checks"] = [{"name": EVIL, "detail": EVIL}]
    example.config["about"] = EVIL
    for part in ("train", "heldout"):
        example.run["data"][part]["name"] = EVIL
        example.data[part] |= {"format": EVIL, "left_out": {EVIL: {"count": 1, "first_rows": []}}, "cut": {EVIL: 3}}
    folder = example.write()
    extras.write_samples(folder, [(EVIL, EVIL, EVIL + "!")])
    extras.write_scored_pairs(folder, TEXTS)
    extras.write_heldout(folder, "pairs-x.json", EVIL)
    extras.write_tasks(folder)
    extras.write_export(folder, "gguf", {"toy.gguf": b"1"}, files={"toy.gguf": "Q4_K_M"})
    verify = folder / "export" / "gguf" / "verify.json"
    verify.write_text(verify.read_text().replace("3 files", json.dumps(EVIL)[1:-1]))
    return folder


def test_nothing_in_the_data_becomes_markup(hostile: Path) -> None:
    elements = Elements(render_page(hostile)).found
    assert [tag for tag, _ in elements if tag == "img"] == []
    scripts = [attributes for tag, attributes in elements if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "report-data"}, {}]
    assert not [key for _, attributes in elements for key in attributes if key.startswith("on")]


def test_no_network(hostile: Path) -> None:
    page = render_page(hostile)
    for tag, attributes in Elements(page).found:
        assert "src" not in attributes
        assert tag not in ("link", "iframe", "object", "base", "form")
        assert (attributes.get("href") or "#").startswith("#")
    assert "default-src 'none'" in page
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest|WebSocket", page)


def test_the_data_is_what_was_measured(example: Any) -> None:
    folder = example.write()
    margins = extras.write_scored_pairs(folder, TEXTS)
    data = json.loads(Elements(render_page(folder)).data)
    assert sorted(pair["margin"] for pair in data["pairs"]) == pytest.approx(sorted(margins))
    assert data["pairs"][0]["prompt"].startswith("prompt ")
    charts = {chart["id"]: chart for chart in data["charts"]}
    loss = next(one for one in charts["chart-loss"]["series"] if one["title"] == "held-out")
    assert loss["points"] == [[row["step"], row["eval_loss"]] for row in example.lines if "eval_loss" in row]
    assert set(charts) == {f"chart-{name}" for name in ("loss", "rewards", "accuracy", "rate", "gradient")}


def test_the_size_is_bounded(example: Any) -> None:
    folder = example.write()
    many = [("p" * 9000, "c" * 9000 + str(i), "r") for i in range(1500)]
    margins = sorted(extras.write_scored_pairs(folder, many))
    page = render_page(folder)
    data = json.loads(Elements(page).data)
    assert len(data["pairs"]) == page_data.PAIRS
    kept = [pair["margin"] for pair in data["pairs"]]
    assert (min(kept), max(kept)) == (margins[0], margins[-1]), "the extremes are there"
    assert data["pairs"][0]["prompt"].endswith("p [7,000 more characters]")
    assert "400 are here with their texts" in page
    assert "1,500 pairs" in page
    assert len(page) < 3_000_000


def test_long_runs_are_thinned(example: Any) -> None:
    example.lines = [{"step": step, "loss": 0.5, "learning_rate": 1e-5} for step in range(1, 20_001)]
    data = json.loads(Elements(render_page(example.write())).data)
    points = data["charts"][0]["series"][0]["points"]
    assert len(points) <= page_data.POINTS + 1
    assert points[-1][0] == 20_000


def test_a_run_that_has_not_begun(example: Any) -> None:
    example.lines, example.data = [], None
    example.run |= {"state": "running", "result": None}
    page = render_page(example.write())
    assert "No step has been logged yet" in page
    assert json.loads(Elements(page).data) == {"charts": [], "pairs": []}


def test_values_that_are_not_finite_are_gaps(example: Any) -> None:
    example.line(80, heldout=True)["eval_loss"] = float("nan")
    data = json.loads(Elements(render_page(example.write())).data)
    loss = next(one for one in data["charts"][0]["series"] if one["title"] == "held-out")
    assert [step for step, _ in loss["points"]] == [0, 40, 120]


def test_no_folder_and_no_token_of_this_machine(example: Any) -> None:
    token = "hf_" + "abcdefghijklmnopqrst"
    example.run["base"]["name"] = "/home/someone/base"
    example.run["command"] = (
        f"qdpo train --model /home/someone/base --set data.name=/home/someone/x.jsonl --key {token}"
    )
    example.run["checks"] = [{"name": "base", "detail": "read from /home/someone/base"}]
    folder = example.write()
    extras.write_samples(folder, [(f"remember {token}", "no", "yes")])
    page = render_page(folder)
    assert "someone" not in page
    assert token not in page
    assert str(folder) not in page


def test_sections_of_what_is_there(example: Any) -> None:
    folder = example.write()
    extras.write_heldout(folder)
    extras.write_tasks(folder)
    extras.write_export(folder, "gguf", {"toy.gguf": b"1"}, files={"toy.gguf": "Q4_K_M"})
    page = write_page(folder).read_text()
    assert page == render_page(folder)
    assert "winogrande" in page
    assert "hellaswag (first 10 items)" in page
    assert "llama.cpp" in page
    assert "of equal length (within 10 %)" in page
    assert "Recipe" not in page


def test_files_that_cannot_be_read_are_named_or_left_out(example: Any) -> None:
    folder = example.write()
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "heldout.json").write_text('{"schema": 99}')
    odd = '{"margin": NaN, "prompt": "a", "chosen": "b", "rejected": "c"}'
    (folder / "evaluation" / "pairs.jsonl").write_text(f'{{"margin": "x"}}\n[1]\n{odd}\n{{"torn')
    (folder / "samples.jsonl").write_text('{"step": "x"}\n')
    page = render_page(folder)
    assert "heldout.json is of another version" in page
    assert "There are no scored pairs" in page


def test_a_run_that_knows_nothing_of_itself_yet(example: Any) -> None:
    """The first seconds of a run: run.json without the sections that it gets later, no metrics."""
    example.run, example.data, example.lines = {"state": "running"}, {}, example.lines[:1]
    folder = example.write()
    assert "n/a" in render_page(folder)
    assert "The run is not finished" in render_card(folder)


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError):
        write_page(tmp_path)


def test_broken_answers_are_among_the_shown_ones() -> None:
    from evaluation.test_written import row

    rows = [row(sample=i) for i in range(40)]
    rows[35] = row("the uncle knew the.", 35, policy_nats=3.0)
    shown = page_data.samples(rows)
    assert [sample.number for sample in shown] == [1, 2, 3, 4, 5, 6, 7, 36]
    assert [sample.fault for sample in shown] == [None] * 7 + ["unlikely under the base"]
    old = [{"step": 0, "prompt": "p", "base": "a", "policy": ""}]
    assert [sample.fault for sample in page_data.samples(old)] == [None], "what was not measured is not judged"
