"""`qdpo eval` on pairs: what it prints and writes for a run, for a model with an adapter, and for wrong input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation.local_tasks import pairs as sentences
from training.tiny import Tiny, TinyRun, make_rows, train_tiny, write_rows

from qdpo.cli.main import main
from qdpo.evaluation.run import file_name


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return train_tiny(tiny, tmp_path_factory.mktemp("run") / "run")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_a_runs_own_pairs_give_what_its_last_evaluation_gave(run: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--run", str(run.folder)]) == 0
    said = capsys.readouterr()
    assert "reward accuracy" in said.out
    assert "of equal length (within 10 %)" in said.out
    assert "\x1b[" not in said.out
    found = read(run.folder / "evaluation" / "heldout.json")
    after, group = run.record["result"]["after"], found["groups"]["all"]
    assert found["kind"] == "heldout"
    assert found["data"]["fingerprint"] == run.record["data"]["heldout"]["fingerprint"]
    assert found["model"]["adapter_sha256"] == run.sha256
    assert group["reward_accuracy"]["value"] == after["eval_rewards/accuracies"]
    assert group["reward_margin"]["value"] == pytest.approx(after["eval_rewards/margins"], abs=1e-4)
    assert group["prefers_chosen"]["policy"]["value"] == after["eval_logps/accuracies"]
    before = run.record["result"]["before"]
    assert group["prefers_chosen"]["base"]["value"] == before["eval_logps/accuracies"]
    assert group["kl_per_token"]["rejected"]["low"] > 0


def test_smaller_passes_give_the_same(run: TinyRun, tmp_path: Path) -> None:
    values = []
    for name, budget in (("small", 120), ("large", 16384)):
        smaller = ["--set", f"packing.tokens_without_grad={budget}", "--out", str(tmp_path / name)]
        assert main(["eval", "--run", str(run.folder), *smaller]) == 0
        values.append(read(tmp_path / name / "heldout.json")["groups"]["all"]["reward_margin"]["value"])
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_a_model_with_an_adapter_is_the_run(run: TinyRun, tiny: Tiny, tmp_path: Path) -> None:
    command = ["eval", "--model", str(tiny.model), "--adapter", str(run.folder / "adapter")]
    assert main([*command, "--pairs", str(tiny.heldout), "--out", str(tmp_path)]) == 0
    assert main(["eval", "--run", str(run.folder), "--pairs", str(tiny.heldout), "--out", str(tmp_path / "run")]) == 0
    one, other = read(tmp_path / "pairs-heldout.json"), read(tmp_path / "run" / "pairs-heldout.json")
    assert one["groups"] == other["groups"]
    assert one["kind"] == "pairs"
    assert main(["eval", "--run", str(run.folder), "--out", str(tmp_path / "own")]) == 0
    assert read(tmp_path / "own" / "heldout.json")["groups"] == one["groups"]


def test_rewards_are_measured_against_the_start_where_it_is_the_reference(
    run: TinyRun, tiny: Tiny, tmp_path: Path
) -> None:
    start = run.folder / "adapter"
    more = train_tiny(
        tiny, tmp_path / "more", f"model.adapter={start}", "reference=start", "train.max_steps=6", "samples.count=0"
    )
    assert main(["eval", "--run", str(more.folder)]) == 0
    found, after = read(more.folder / "evaluation" / "heldout.json"), more.record["result"]["after"]
    assert found["model"]["reference"] == "start"
    assert found["groups"]["all"]["reward_margin"]["value"] == pytest.approx(after["eval_rewards/margins"], abs=1e-4)
    first = run.record["result"]["after"]["eval_logps/accuracies"]
    assert found["groups"]["all"]["prefers_chosen"]["base"]["value"] == first


def test_other_schemas_and_a_base_alone(
    run: TinyRun, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blimp = tmp_path / "blimp.jsonl"
    write_rows(blimp, sentences())
    out = str(tmp_path / "out")
    plain = ["--set", "data.template=none"]
    assert main(["eval", "--run", str(run.folder), "--pairs", str(blimp), *plain, "--out", out]) == 0
    assert "McNemar exact p" in capsys.readouterr().out
    adapted = read(tmp_path / "out" / "pairs-blimp.json")
    assert adapted["data"]["pairs"] == 8
    assert main(["eval", "--model", str(tiny.model), "--pairs", str(blimp), *plain, "--out", out, "--limit", "5"]) == 0
    alone = read(tmp_path / "out" / "pairs-blimp.json")
    assert set(alone["groups"]["all"]["prefers_chosen"]) == {"base"}
    assert alone["data"]["pairs"] == 5
    winogrande = tmp_path / "wino.jsonl"
    row = {"sentence": "The cup fit in the bag because _ was big.", "option1": "the bag", "option2": "the cup"}
    write_rows(winogrande, [row | {"answer": "1"}, row | {"sentence": "The cup broke; _ was thin.", "answer": "2"}])
    capsys.readouterr()
    assert main(["eval", "--model", str(tiny.model), "--pairs", str(winogrande)]) == 0
    said = capsys.readouterr()
    assert "2 pairs of 2 rows, winogrande" in said.err
    assert "written to" not in said.err


def test_the_numbers_of_pairs_are_those_of_plain_passes(run: TinyRun, tmp_path: Path) -> None:
    from qdpo.run.trained import load_trained

    write_rows(tmp_path / "b.jsonl", sentences())
    command = ["eval", "--run", str(run.folder), "--pairs", str(tmp_path / "b.jsonl"), "--set", "data.template=none"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    trained = load_trained(run.folder)
    model: Any = trained.policy

    def logp(text: str) -> float:
        ids = torch.tensor([trained.tokenizer.encode(text + "</s>")])
        with torch.no_grad():
            return float(model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum())

    right = [logp(row["sentence_good"]) > logp(row["sentence_bad"]) for row in sentences()]
    found = read(tmp_path / "pairs-b.json")["groups"]["all"]["prefers_chosen"]
    assert found["policy"]["value"] == sum(right) / len(right)


MISTAKES = [
    ([], 64, "evaluate what?"),
    (["--run", "RUN", "--model", "x"], 69, "x is not in the local cache"),
    (["--run", "RUN", "--adapter", "x"], 64, "--adapter needs --model"),
    (["--model", "MODEL"], 64, "no held-out pairs of its own"),
    (["--run", "RUN", "--pairs", "x", "--tasks", "y"], 64, "different evaluations"),
    (["--run", "RUN", "--limit", "0"], 64, "--limit takes a number from 1"),
    (["--run", "RUN", "--shots", "5"], 64, "--shots is for --tasks"),
    (["--run", "RUN", "--form", "merged"], 64, "for --tasks"),
    (["--run", "RUN", "--set", "data.max_length=9"], 64, "held-out pairs are what they are"),
    (["--run", "RUN", "--pairs", "x", "--set", "train.seed=1"], 64, "reads no such setting"),
    (["--run", "RUN", "--pairs", "x", "--set", "model.name=y"], 64, "what was trained"),
    (["--run", "nowhere"], 66, "holds no run"),
    (["--run", "RUN", "--pairs", "missing.jsonl"], 66, "there is no file missing.jsonl"),
    (["--run", "RUN", "--pairs", "BAD"], 65, "no known preference format"),
    (["--model", "nowhere/at-all", "--pairs", "HELDOUT"], 69, "cannot be reached"),
    (["--model", "MODEL", "--adapter", "nowhere", "--pairs", "HELDOUT"], 66, "no adapter folder"),
    (["--model", "MODEL", "--adapter", "RUN", "--pairs", "HELDOUT"], 66, "it is a run: --run"),
    (["--model", "OTHER", "--adapter", "RUN/adapter", "--pairs", "HELDOUT"], 78, "does not fit this base"),
    (["--model", "FLAT", "--adapter", "RUN/adapter", "--pairs", "HELDOUT"], 78, "has no place for 14 of 28 tensors"),
    (["--model", "DEEP", "--adapter", "RUN/adapter", "--pairs", "HELDOUT"], 78, "finds no value for 14 of 42 tensors"),
]


@pytest.mark.parametrize(("arguments", "code", "part"), MISTAKES, ids=lambda value: str(value)[:40])
def test_mistakes(
    arguments: list[str],
    code: int,
    part: str,
    run: TinyRun,
    tiny: Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"good": "a", "bad": "b"}\n')
    shapes = {"OTHER": {"intermediate_size": 64}, "FLAT": {"num_hidden_layers": 1}, "DEEP": {"num_hidden_layers": 3}}
    for name, shape in shapes.items():
        if name in arguments:
            another(tiny.model, tmp_path / name, shape)
    places = {
        "RUN": str(run.folder),
        "RUN/adapter": str(run.folder / "adapter"),
        "MODEL": str(tiny.model),
        "HELDOUT": str(tiny.heldout),
        "BAD": str(tmp_path / "bad.jsonl"),
        **{name: str(tmp_path / name) for name in shapes},
    }
    assert main(["eval", *(places.get(word, word) for word in arguments)]) == code
    said = capsys.readouterr()
    assert part in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("lines", "code", "part"),
    [
        (['{"prompt": "a", "chosen": "b", "rejected": null}'], 65, "cannot be used"),
        (["not JSON"], 65, "not JSON"),
        ([], 66, "there is no file"),
        # a control: pairs that are sound need the model
        (['{"prompt": "a", "chosen": "b", "rejected": "c"}'], 65, "weights"),
    ],
    ids=["a row at fault", "broken", "missing", "sound"],
)
def test_pairs_are_read_before_the_model(
    lines: list[str], code: int, part: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny.model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    pairs = tmp_path / "pairs.jsonl"
    if lines:
        pairs.write_text("\n".join(lines))
    assert main(["eval", "--model", str(tmp_path / "model"), "--pairs", str(pairs)]) == code
    assert part in capsys.readouterr().err
    assert main(["eval", "--model", "no-such/model-at-all", "--pairs", str(pairs)]) == (69 if lines else 66)


def another(model: Path, folder: Path, shape: dict[str, int]) -> None:
    """The same kind of model in another shape, with the same tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(model)
    for name, value in shape.items():
        setattr(config, name, value)
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (model / name).is_file():
            shutil.copy(model / name, folder / name)


def test_an_unfinished_run_and_a_damaged_adapter_are_refused(
    run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.folder, copy)
    weights = copy / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["eval", "--run", str(copy)]) == 66
    shutil.rmtree(copy / "adapter")
    assert main(["eval", "--run", str(copy)]) == 66
    said = capsys.readouterr().err
    assert "is damaged" in said
    assert "has no adapter yet" in said


def test_pairs_that_are_almost_all_the_training_data_can_be_limited(run: TinyRun, tmp_path: Path) -> None:
    write_rows(tmp_path / "many.jsonl", make_rows(30, seed=9))
    assert main(["eval", "--run", str(run.folder), "--pairs", str(tmp_path / "many.jsonl"), "--limit", "7"]) == 0
    assert read(run.folder / "evaluation" / "pairs-many.json")["data"]["pairs"] == 7


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (None, "heldout.json"),
        ("/data/dev.jsonl.gz", "pairs-dev.json"),
        ("allenai/winogrande", "pairs-winogrande.json"),
        ("../a b.json", "pairs-a-b.json"),
        (".hidden", "pairs-hidden.json"),
    ],
)
def test_the_name_of_the_file(given: str | None, name: str) -> None:
    assert file_name(given) == name
