"""A resume with something changed: it is said exactly, and refused where it would change the result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from faults.mutations import copy, files_of
from training.tiny import Tiny, TinyRun, make_rows, make_tokenizer, read_run, train_until, write_rows

from qdpo.cli.main import main
from qdpo.config import fields
from qdpo.config.resolve import resolve
from qdpo.errors import ConfigError, UsageError
from qdpo.run import folder as run_folder
from qdpo.run.meaning import FREE, RESULT, VERDICTS
from qdpo.run.schema import Record
from qdpo.training.resume import Comparison, settings_of

SETTINGS = ("train.max_steps=6", "train.save_every=2", "train.eval_every=6", "samples.count=0")


@pytest.fixture(scope="module")
def stopped(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that died at step 5, with a checkpoint of step 4, on data and a base of its own; not to be changed."""
    root = tmp_path_factory.mktemp("stopped")
    shutil.copytree(tiny.model, root / "model")
    for name in ("train.jsonl", "heldout.jsonl"):
        shutil.copy(tiny.train.parent / name, root / name)
    own = (f"model.name={root / 'model'}", f"data.name={root / 'train.jsonl'}")
    train_until(tiny, root / "run", 5, *SETTINGS, *own, f"data.eval_name={root / 'heldout.jsonl'}")
    return root


@pytest.fixture
def world(stopped: Path, tmp_path: Path) -> Path:
    """A copy of all of it: run, model, data; the configuration names the copies."""
    root = copy(stopped, tmp_path / "world")
    for name in ("config.yaml", "run.json"):
        path = root / "run" / name
        path.write_text(path.read_text().replace(str(stopped), str(root)))
    return root


def resume(world: Path, *arguments: str) -> int:
    return main(["train", "--run-dir", str(world / "run"), "--resume", *arguments])


def state_of(world: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in files_of(world / "run") if path.name in ("run.json", "config.yaml")
    }


def refused(world: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a resume says that refuses; nothing may have changed."""
    before = state_of(world)
    assert resume(world, *arguments) == ConfigError.exit_code
    assert state_of(world) == before
    assert not (world / "run" / "adapter").exists()
    return capsys.readouterr().err


def test_an_unchanged_resume_says_of_no_change(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert resume(world) == 0
    assert "changed since" not in capsys.readouterr().err
    assert "changes" not in read_run(world / "run").record


def test_settings_that_change_the_result_are_refused_and_named(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(world, capsys, "--set", "train.learning_rate=2e-3", "--set", "loss.beta=0.3")
    assert "train.learning_rate: 0.001 -> 0.002" in said
    assert "loss.beta: 0.1 -> 0.3" in said
    assert "--allow-change loss.beta --allow-change train.learning_rate" in said
    # one of two allowed is not enough
    said = refused(
        world, capsys, "--set", "train.learning_rate=2e-3", "--set", "loss.beta=0.3", "--allow-change", "loss"
    )
    assert "result: train.learning_rate: 0.001 -> 0.002\n" in said


def test_what_is_allowed_takes_effect(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["--set", "train.max_steps=8", "--set", "train.learning_rate=2e-3", "--set", "train.weight_decay=0.1"]
    assert resume(world, *changes, "--allow-change", "train", "--allow-change", "loss.beta") == 0
    said = capsys.readouterr().err
    assert "note: changed since the run began: train.max_steps: 6 -> 8 (allowed)" in said
    assert "note: --allow-change loss.beta: nothing of that name has changed" in said
    run = read_run(world / "run")
    assert run.record["result"]["steps"] == 8
    [entry] = run.record["changes"]
    assert entry["after_step"] == 4
    assert {change["key"] for change in entry["changed"]} == {
        "train.max_steps",
        "train.learning_rate",
        "train.weight_decay",
    }
    rates = {line["step"]: line["learning_rate"] for line in run.metrics if "loss" in line}
    # cosine to 8 steps after 2 of warmup, from the new peak
    assert rates[4] < 1e-3 < rates[5] == pytest.approx(2e-3 * 0.75)
    optimizer = json.loads((run.folder / "checkpoints" / "step-000008" / "optimizer.json").read_text())
    assert '["weight_decay", {"value": 0.1}]' in json.dumps(optimizer)
    # the next resume goes by what was accepted
    assert run_folder.reopen(world / "run").config.train.max_steps == 8
    assert resume(world) == 0


def test_what_has_no_influence_is_said_and_allowed(
    stopped: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resume(world, "--set", "train.log_every=3", "--set", "packing.tokens_per_micro_batch=300") == 0
    said = capsys.readouterr().err
    assert "changed since the run began: train.log_every: 1 -> 3 (no influence on the result)" in said
    assert "packing.tokens_per_micro_batch: 4096 -> 300 (it may change the last digits)" in said
    # and it holds from here on
    assert [line["step"] for line in read_run(world / "run").metrics if "loss" in line] == [1, 2, 3, 4, 6]


def test_what_a_checkpoint_cannot_follow_is_refused_whatever_is_allowed(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(world, capsys, "--set", "lora.r=8", "--allow-change", "lora.r")
    assert "lora.r: 4 -> 8 (a checkpoint cannot be continued with another)" in said
    assert "--allow-change" not in said


def test_a_changed_dataset(world: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(world / "train.jsonl", make_rows(44, seed=9))
    said = refused(world, capsys)
    old, new = said.split("data.train.fingerprint: ")[1].split("\n")[0].split(" -> ")
    assert len(old) == len(new) == 64
    assert old != new
    assert "--allow-change data.train.fingerprint" in said
    assert resume(world, "--allow-change", "data") == 0


def test_the_same_data_in_another_place_is_the_same(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (world / "train.jsonl").rename(world / "moved.jsonl")
    (world / "model").rename(world / "moved")
    assert resume(world, "--set", f"data.name={world / 'moved.jsonl'}", "--model", str(world / "moved")) == 0
    assert "data.name: " in (said := capsys.readouterr().err)
    assert "(its content decides, and is compared)" in said


def test_a_changed_tokenizer(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["forest"])
    tokenizer.save_pretrained(world / "model")
    said = refused(world, capsys)
    assert "tokenizer.sha256: " in said
    assert "data.train.fingerprint: " in said


def test_a_changed_template(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "tokenizer.template_sha256" in refused(world, capsys, "--set", "data.template=none")


def test_a_changed_base(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from training.tiny import make_model

    make_model("llama", seed=7).save_pretrained(world / "model")
    assert "base.weights_sha256: " in refused(world, capsys)
    config = json.loads((world / "model" / "config.json").read_text())
    (world / "model" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-4}))
    assert "base.config_sha256: " in refused(world, capsys)


def change_record(world: Path, key: str, value: Any) -> None:
    path = world / "run" / "run.json"
    record = json.loads(path.read_text())
    *way, last = key.split(".")
    place = record
    for part in way:
        place = place[part]
    place[last] = value
    path.write_text(json.dumps(record))


def test_other_versions(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("versions.torch", "versions.datasets", "versions.trl", "qdpo"):
        change_record(world, key, "0.0.1")
    said = refused(world, capsys)
    assert "versions.torch: 0.0.1 -> " in said
    assert "qdpo: 0.0.1 -> " in said
    # what these do is seen in the pairs; and TRL is not used
    for name in ("datasets", "trl"):
        assert f"note: changed since the run began: versions.{name}: 0.0.1 -> " in said
    assert resume(world, "--allow-change", "versions.torch", "--allow-change", "qdpo") == 0


def test_another_device(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_record(world, "hardware.name", "Tesla T4")
    change_record(world, "dtype.compute", "float16")
    assert "dtype.compute: float16 -> float32" in (said := refused(world, capsys))
    assert "hardware.name: Tesla T4 -> " in said


def test_a_configuration_edited_by_hand_is_noticed(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = world / "run" / "config.yaml"
    path.write_text(path.read_text().replace("beta: 0.1", "beta: 0.2"))
    assert "loss.beta: 0.1 -> 0.2" in refused(world, capsys)


def test_a_resume_with_the_preset_that_the_run_had_or_another(
    world: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((world / "run" / "config.yaml").read_text())
    config["loss"]["beta"] = 0.5
    (world / "other.yaml").write_text(yaml.safe_dump(config))
    assert "loss.beta: 0.1 -> 0.5" in refused(world, capsys, "--preset", str(world / "other.yaml"))
    shutil.copy(world / "run" / "config.yaml", world / "same.yaml")
    assert resume(world, "--preset", str(world / "same.yaml")) == 0


def test_allow_change_is_for_a_resume(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--preset", str(tiny.preset), "--allow-change", "qdpo"]) == UsageError.exit_code
    assert "--allow-change is for --resume" in capsys.readouterr().err


def test_every_verdict_is_about_a_setting_that_exists() -> None:
    assert VERDICTS.keys() <= fields.settings().keys()


def test_evaluations_that_decide_about_the_result_are_no_free_change(tiny: Tiny) -> None:
    for overrides, verdict in (((), FREE), (("train.load_best=loss",), RESULT)):
        old = resolve(str(tiny.preset), overrides)
        new = resolve(str(tiny.preset), [*overrides, "train.eval_every=3"])
        [change] = Comparison(Record(settings=settings_of(old.config)), new).settings()
        assert change.verdict == verdict


def test_a_longer_run_is_the_one_that_it_would_have_been(world: Path, stopped: Path) -> None:
    """Steps that were done under another schedule stay; those to come follow the new one."""
    assert resume(world, "--set", "train.max_steps=7", "--allow-change", "train.max_steps") == 0
    run: TinyRun = read_run(world / "run")
    assert len(run.losses) == 7
    assert run.record["state"] == "finished"
