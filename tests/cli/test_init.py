"""`qdpo init`, and `qdpo train` with nothing but a model and data."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from training.tiny import Tiny, make_rows, write_rows

import qdpo
from qdpo.cli import init
from qdpo.cli import main as cli
from qdpo.cli.main import main
from qdpo.cli.options import config_of


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own(tiny: Tiny) -> list[str]:
    return ["--model", str(tiny.model), "--data", str(tiny.train)]


def answers(monkeypatch: pytest.MonkeyPatch, *said: str) -> list[str]:
    """A terminal on which these answers are given; returns the questions that were asked."""
    asked: list[str] = []
    rest = list(said)
    monkeypatch.setattr(init, "can_ask", lambda yes: not yes)

    def answer(question: str, default: str) -> str:
        asked.append(question)
        return rest.pop(0) or default

    monkeypatch.setattr(init, "ask", answer)
    return asked


def test_it_writes_a_preset_with_reasons_that_train_takes(
    tiny: Tiny, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", *own(tiny), "--yes"]) == 0
    said = capsys.readouterr()
    assert said.out == "model-train.yaml\n"
    file = here / "model-train.yaml"
    config = qdpo.Config.load("./model-train.yaml")
    assert (config.model.name, config.data.name, config.data.template) == (str(tiny.model), str(tiny.train), "auto")
    # "The cat is in the house." against "... garden.": DPO alone would make both rarer
    assert config.loss.loss_type == ["sigmoid", "sft"]
    assert config.data.max_length == 128
    assert "share" in file.read_text()
    assert len(file.read_text().splitlines()) <= 40
    assert "data.template: auto  (the tokenizer's own)" in said.err
    commands = [line.strip().partition("  # ")[0] for line in said.err.splitlines() if line.startswith("  qdpo ")]
    assert [shlex.split(command)[1] for command in commands] == ["data", "plan", "train"]
    for command in commands:
        words = shlex.split(command)[1:]
        parser, _, _ = cli._parser(words[0])
        parser.parse_args(words)
    # again: the same file; with another setting: a file beside it
    assert main(["init", *own(tiny), "--yes"]) == 0
    assert main(["init", *own(tiny), "--yes", "--lora-r", "128"]) == 0
    assert capsys.readouterr().out == "model-train.yaml\nmodel-train-2.yaml\n"
    assert qdpo.Config.load("./model-train-2.yaml").train.learning_rate == 5e-6
    assert main(["init", *own(tiny), "--out", "model-train.yaml", "--beta", "1"]) == 73


def test_at_most_four_questions(tiny: Tiny, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, str(tiny.model), str(tiny.train), "2", "mine.yaml")
    assert main(["init"]) == 0
    assert len(asked) == 4
    assert qdpo.Config.load("mine.yaml").train.num_train_epochs == 2
    asked.clear()
    assert main(["init", *own(tiny), "--yes"]) == 0
    assert asked == []


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        ([], 64, "which model?"),
        (["--model", "MODEL"], 64, "which data?"),
        (["--model", "nowhere/at-all", "--data", "DATA"], 69, "nowhere/at-all"),
        (["--model", "MODEL", "--data", "absent.jsonl"], 66, "absent.jsonl"),
        (["--model", "MODEL", "--data", "bad.jsonl"], 65, "1 chosen is empty write a text 8"),
        (["--model", "MODEL", "--data", "DATA", "--set", "lora.rr=3"], 78, "lora.rr"),
        (["--model", "MODEL", "--data", "DATA", "--template", "none", "--out", "nowhere/x.yaml"], 73, "nowhere"),
    ],
)
def test_a_mistake_leaves_no_file(
    arguments: list[str], code: int, part: str, tiny: Tiny, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_rows(20, seed=5)
    write_rows(here / "bad.jsonl", [*rows[:7], {**rows[7], "chosen": ""}, *rows[8:]])
    before = sorted(here.rglob("*"))
    places = {"MODEL": str(tiny.model), "DATA": str(tiny.train)}
    assert main(["init", *(places.get(word, word) for word in arguments)]) == code
    assert part in " ".join(capsys.readouterr().err.split())
    assert sorted(here.rglob("*")) == before


def test_a_model_without_a_template(tiny: Tiny, here: Path) -> None:
    """Plain pairs are learned as plain text, conversations in a format that needs no token of its own."""
    bare = here / "bare"
    bare.mkdir()
    for path in tiny.model.iterdir():
        if path.name != "chat_template.jinja":
            (bare / path.name).symlink_to(path)
    talk = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in make_rows(20, seed=5)]
    write_rows(here / "talk.jsonl", talk)
    for data, template in ((tiny.train, "none"), (here / "talk.jsonl", "zephyr")):
        assert main(["init", "--model", "bare", "--data", str(data), "--out", f"{template}.yaml"]) == 0
        assert qdpo.Config.load(f"./{template}.yaml").data.template == template


def test_a_folder_with_a_held_out_split(tiny: Tiny, here: Path) -> None:
    (here / "pairs").mkdir()
    write_rows(here / "pairs" / "train.jsonl", make_rows(20, seed=5))
    write_rows(here / "pairs" / "test.jsonl", make_rows(8, seed=6))
    assert main(["init", "--model", str(tiny.model), "--data", "pairs", "--out", "mine.yaml"]) == 0
    assert qdpo.Config.load("mine.yaml").data.eval_split == "test"


def test_held_out_pairs_in_a_file_of_their_own(tiny: Tiny, here: Path) -> None:
    own_file = ["--eval-name", str(tiny.heldout), "--max-rows", "30"]
    assert main(["init", *own(tiny), *own_file, "--out", "mine.yaml"]) == 0
    config = qdpo.Config.load("mine.yaml")
    assert (config.data.eval_name, config.data.max_rows) == (str(tiny.heldout), 30)
    text = (here / "mine.yaml").read_text()
    assert "eval_fraction" not in text
    assert "# 30 pairs" in text
    assert "21 steps" in text  # 30 // 4 a pass, three passes: none of these 30 is held out


SHORT = ["--max-steps", "2", "--set", "data.max_rows=12", "--set", "samples.count=0"]


def test_training_with_nothing_but_model_and_data(tiny: Tiny, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *own(tiny), *SHORT, "--dry-run"]) == 0
    assert list(here.iterdir()) == []
    assert "extends" not in capsys.readouterr().out
    assert main(["train", *own(tiny), *SHORT]) == 0
    assert sorted(path.name for path in here.iterdir()) == ["model-train.yaml", "runs"]
    record = json.loads((here / "runs" / "model-train" / "run.json").read_text())
    assert (record["state"], record["result"]["steps"], record["preset"]) == ("finished", 2, "model-train.yaml")


def test_a_start_that_fails_leaves_no_file(tiny: Tiny, here: Path) -> None:
    refused = ["--set", "lora.target_modules=q_prj"]
    assert main(["train", *own(tiny), *SHORT, *refused]) == 78
    assert list(here.iterdir()) == []


def test_no_is_an_answer(tiny: Tiny, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, "no")
    assert main(["train", *own(tiny), *SHORT]) == 0
    assert len(asked) == 1
    assert [path.name for path in here.iterdir()] == ["model-train.yaml"]


def test_plan_chooses_the_same_settings_and_writes_nothing(tiny: Tiny, here: Path) -> None:
    parser, _, _ = cli._parser("plan")
    config = config_of(parser.parse_args(["plan", *own(tiny), "--set", "lora.r=128"]), "")
    assert (config.name, config.train.learning_rate, config.data.max_length) == ("model-train", 5e-6, 128)
    assert list(here.iterdir()) == []
