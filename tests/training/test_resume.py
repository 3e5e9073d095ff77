"""The same run twice, and a run that died and was continued: the same adapter to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training.tiny import StopAt, Stopped, Tiny, TinyRun, train_tiny, train_until, with_callbacks

from qdpo.run import checkpoint
from qdpo.run import folder as run_folder

DROPOUT = ("train.disable_dropout=false", "lora.lora_dropout=0.2")
OPTIMIZERS = ("paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit", "adamw_torch", "adamw_torch_fused")


def test_a_seed_gives_the_same_adapter_twice(tiny: Tiny, tmp_path: Path) -> None:
    first, second = (train_tiny(tiny, tmp_path / name, *DROPOUT) for name in ("first", "second"))
    assert first.sha256 == second.sha256
    assert first.measured() == second.measured()
    other = train_tiny(tiny, tmp_path / "other", *DROPOUT, "train.seed=43")
    assert other.sha256 != first.sha256


def test_dropout_is_off_by_default_and_really_on_when_asked_for(tiny: Tiny, tmp_path: Path) -> None:
    plain = train_tiny(tiny, tmp_path / "plain", "lora.lora_dropout=0.0")
    disabled = train_tiny(tiny, tmp_path / "disabled", "lora.lora_dropout=0.2")
    dropped = train_tiny(tiny, tmp_path / "dropped", *DROPOUT)
    assert disabled.losses == plain.losses
    assert dropped.losses != plain.losses
    config = json.loads((disabled.folder / "adapter" / "adapter_config.json").read_text())
    assert config["lora_dropout"] == 0.2


@pytest.fixture(scope="module")
def straight(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory):
    """Uninterrupted runs by their overrides, each trained once."""
    known: dict[tuple[str, ...], TinyRun] = {}

    def get(*overrides: str) -> TinyRun:
        if overrides not in known:
            known[overrides] = train_tiny(tiny, tmp_path_factory.mktemp("straight") / "run", *overrides)
        return known[overrides]

    return get


# An epoch has 5 steps: a checkpoint at 10 lies between two epochs, one at 7 within one, and both resumes go on into
# further epochs.
@pytest.mark.parametrize(
    ("dropout", "save_every"), [((), 10), (DROPOUT, 7)], ids=["no dropout, at 10", "dropout, at 7"]
)
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_a_resumed_run_ends_with_the_adapter_of_an_uninterrupted_one(
    optim: str, dropout: tuple[str, ...], save_every: int, straight, tiny: Tiny, tmp_path: Path
) -> None:
    overrides = (f"train.optim={optim}", *dropout)
    expected = straight(*overrides)
    folder = tmp_path / "run"
    train_until(tiny, folder, 13, *overrides, f"train.save_every={save_every}")
    assert checkpoint.newest_whole(folder / "checkpoints") == folder / "checkpoints" / f"step-{save_every:06d}"

    resumed = train_tiny(tiny, folder, *overrides, f"train.save_every={save_every}", resume=True)
    assert resumed.sha256 == expected.sha256
    assert resumed.measured() == expected.measured()
    assert resumed.record["result"]["tokens"] == expected.record["result"]["tokens"]


def test_a_run_may_die_and_be_resumed_again_and_again(straight, tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    overrides = (*DROPOUT, "train.save_every=3")
    train_until(tiny, folder, 4, *overrides)
    for step in (8, 11, 19):
        with with_callbacks(StopAt(step)), pytest.raises(Stopped):
            train_tiny(tiny, folder, *overrides, resume=True)
    assert train_tiny(tiny, folder, *overrides, resume=True).sha256 == straight(*DROPOUT).sha256


def test_a_run_that_died_before_its_first_checkpoint_starts_anew(straight, tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train_until(tiny, folder, 4)
    resumed = train_tiny(tiny, folder, resume=True)
    # what `auto` is on a CPU
    assert resumed.record["optimizer"]["name"] == "adamw_torch"
    assert resumed.sha256 == straight("train.optim=adamw_torch").sha256
    assert [line["step"] for line in resumed.metrics if "loss" in line] == list(range(1, 21))


def test_a_damaged_newest_checkpoint_costs_its_steps_and_nothing_else(
    straight, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    overrides = (*DROPOUT, "train.save_every=5")
    train_until(tiny, folder, 13, *overrides)
    damaged = folder / "checkpoints" / "step-000010" / "optimizer.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)

    assert train_tiny(tiny, folder, *overrides, resume=True).sha256 == straight(*DROPOUT).sha256
    said = capsys.readouterr().err
    assert "step-000010 is damaged and is passed over: optimizer.safetensors does not match its SHA-256" in said
    assert "resuming from step-000005" in said


def test_the_configuration_of_a_resume_is_the_one_that_the_run_began_with(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train_until(tiny, folder, 2, "train.learning_rate=3e-4")
    assert run_folder.reopen(folder).config.train.learning_rate == 3e-4


def test_resuming_a_finished_run_changes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    finished = train_tiny(tiny, tmp_path / "run", "train.max_steps=4")
    again = train_tiny(tiny, tmp_path / "run", "train.max_steps=4", resume=True)
    assert again.sha256 == finished.sha256
    assert again.measured() == finished.measured()
