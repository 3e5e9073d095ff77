"""The README's first command, as a user runs it: what it promises about results, memory and files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import qdpo

GIB = 1 << 30

# The command, and then what the operating system says of its memory.
MEASURED = (
    "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode;"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024); sys.exit(code)"
)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """The run directory, peak resident bytes, and what was said, of `qdpo train --preset quickstart`."""
    folder = tmp_path_factory.mktemp("quickstart")
    command = [sys.executable, "-m", "qdpo", "train", "--preset", "quickstart"]
    # No hub, and no user's cache: nothing but the package itself.
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "QDPO_CACHE": str(folder / "cache")}
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, *command], cwd=folder, env=env, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    return folder / "runs" / "quickstart", int(result.stdout.split()[-1]), result.stderr


def evaluations(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "eval_loss" in line]


def test_preferences_are_learned_from_chance_and_text_is_not_forgotten(quickstart: tuple[Path, int, str]) -> None:
    before, *during, after = evaluations(quickstart[0])
    assert before["step"] == 0
    assert during
    assert 0.45 <= before["eval_logps/accuracies"] <= 0.60
    assert after["eval_rewards/accuracies"] >= 0.85
    assert after["eval_logps/accuracies"] >= 0.85
    assert after["eval_text_nll"] <= 1.10 * before["eval_text_nll"]


def test_what_it_writes_is_true_and_the_verdict_is_good_for_it(quickstart: tuple[Path, int, str]) -> None:
    before, after = (evaluations(quickstart[0])[i] for i in (0, -1))
    assert after["eval_rewards/accuracies"] >= 0.95
    assert after["eval_text_nll"] <= 1.02 * before["eval_text_nll"]
    last = qdpo.Run.open(quickstart[0]).written()[-1]
    assert last.right is not None
    assert last.broken is not None
    assert last.right.n == 96
    assert last.right.before <= 0.6 * 96
    assert last.right.after >= 0.85 * 96
    assert last.broken.after <= 0.08 * 96
    first = qdpo.Run.open(quickstart[0]).verdicts()[0]
    assert (first.kind, first.good) == ("learning", True)


def variant(folder: Path, *settings: str) -> tuple[int, float]:
    """How good the verdict on another recipe for the same pairs is (0 an alarm, 2 a good word), and the right share."""
    run = qdpo.train("quickstart", [*settings, "train.eval_every=400"], run_dir=folder)
    first, last = run.verdicts()[0], run.written()[-1]
    assert last.right is not None
    return 0 if first.alarm else 2 if first.good else 1, last.right.after / last.right.n


PREFERENCE = ("loss.loss_type=[sigmoid]", "loss.beta=0.1")


def test_pairs_won_by_text_that_falls_apart_are_an_alarm(tmp_path: Path) -> None:
    """The preference alone, at the same learning rate: less is right than the preset promises, an eighth is broken."""
    mark, right = variant(tmp_path / "run", *PREFERENCE, "train.max_steps=80")
    assert mark == 0
    assert right < 0.85
    after = evaluations(tmp_path / "run")[-1]
    assert after["eval_rewards/accuracies"] >= 0.9


@pytest.mark.slow
def test_five_recipes_come_out_in_the_order_of_their_text(tmp_path: Path) -> None:
    recipes = {
        "hot": (*PREFERENCE, "train.max_steps=120", "train.learning_rate=3e-3"),
        "preference alone": (*PREFERENCE, "train.max_steps=120"),
        "mild": (*PREFERENCE, "train.max_steps=120", "train.learning_rate=3e-4"),
        "likelihood once": ("loss.beta=0.1", "train.max_steps=120"),
        "shipped": (),
    }
    found = {name: variant(tmp_path / name, *settings) for name, settings in recipes.items()}
    by_text = sorted(found.values(), key=lambda entry: entry[1])
    assert [mark for mark, _ in by_text] == sorted(mark for mark, _ in by_text), found
    assert found["preference alone"][0] == 0
    assert found["mild"][0] > 0
    assert found["likelihood once"][0] > 0
    assert found["shipped"][0] == 2


def test_memory_stays_below_three_gib(quickstart: tuple[Path, int, str]) -> None:
    assert quickstart[1] <= 3 * GIB


def test_base_is_quantized_by_bitsandbytes_and_all_seven_projections_are_adapted(
    quickstart: tuple[Path, int, str],
) -> None:
    record = json.loads((quickstart[0] / "run.json").read_text())
    assert record["quantization"]["method"] == "nf4"
    assert len(record["quantization"]["modules"]) == record["adapter"]["modules"] == 4 * 7
    config = json.loads((quickstart[0] / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 16
    assert len(config["target_modules"]) == 7


def test_run_directory_holds_what_the_readme_lists(quickstart: tuple[Path, int, str]) -> None:
    run = quickstart[0]
    for name in ("adapter/adapter_model.safetensors", "README.md", "metrics.jsonl", "data_report.json", "config.yaml"):
        assert (run / name).is_file(), name
    assert {path.name for path in (run / "plots").iterdir()} == {"loss.png", "rewards.png", "accuracies.png"}
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    pickles = [path for path in run.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl")]
    assert pickles == []
    front = (run / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(front)["library_name"] == "peft"


def test_every_check_is_said_as_one_line(quickstart: tuple[Path, int, str]) -> None:
    said = quickstart[2]
    for check in ("policy equals reference", "every target has a trainable adapter", "every adapter learns"):
        assert any(line.startswith("ok ") and check in line for line in said.splitlines()), check


def test_the_adapter_loads_with_peft_alone(quickstart: tuple[Path, int, str]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(Path(qdpo.__file__).parent / "assets" / "base")
    model = PeftModel.from_pretrained(base, str(quickstart[0] / "adapter"))
    weights = {name: p for name, p in model.named_parameters() if "lora_B" in name}
    assert len(weights) == 28
    assert all(weight.any() for weight in weights.values())


def test_merge_export_of_the_run_loads_and_prefers_the_chosen(quickstart: tuple[Path, int, str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = quickstart[0]
    command = [sys.executable, "-m", "qdpo", "merge-export", "--run", str(run), "--format", "safetensors"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    merged = run / "export" / "safetensors"
    model = AutoModelForCausalLM.from_pretrained(merged, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(merged)
    question = "Finish the sentence: The trophy did not fit in the suitcase because"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    said = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert said.strip() in ("the trophy was too big.", "the suitcase was too small.")
