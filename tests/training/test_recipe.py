"""When a run evaluates, saves and logs, by which rates it learns, and which adapter it ends with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training.tiny import Callback, Tiny, resolve_tiny, train_tiny, with_callbacks

from qdpo.run import checkpoint
from qdpo.training import recipe


def scripted(values: dict[int, float]) -> Any:
    """Evaluations that say what the test wants, by step."""

    def change(recipe: Any) -> None:
        evaluate = recipe.engine.score_all

        def score_all(pairs: Any, budget: int, *advance: Any) -> Any:
            scores = evaluate(pairs, budget, *advance)
            scores.logps[: len(pairs)] += values.get(recipe.progress.step, 0.0)
            return scores

        object.__setattr__(recipe.engine, "score_all", score_all)

    return change


def test_only_an_evaluation_better_than_all_before_is_kept(tiny: Tiny, tmp_path: Path) -> None:
    settings = ("train.max_steps=8", "train.eval_every=2", "train.save_every=100", "train.keep=9")
    # 4 beats 2, 6 is as good as 4, 8 is worse; the evaluation before the first step is no candidate
    with with_callbacks(change=scripted({0: 30.0, 2: -20.0, 4: 20.0, 6: 20.0, 8: -20.0})):
        run = train_tiny(tiny, tmp_path / "run", *settings, "train.load_best=accuracy")
    assert [line["eval_rewards/accuracies"] for line in run.metrics if "eval_loss" in line] == [1, 0, 1, 1, 0]
    assert checkpoint.complete_steps(run.folder / "checkpoints") == [2, 4, 8]
    assert run.record["result"]["adapter_step"] == 4


def test_minutes_without_a_checkpoint_ask_for_one(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    monkeypatch.setattr(recipe, "time", SimpleNamespace(monotonic=lambda: clock))

    class Minutes(Callback):
        def on_step_end(self, recipe: Any) -> None:
            nonlocal clock
            clock += 150

    settings = ("train.max_steps=6", "train.save_every=100", "train.keep=9", "train.save_minutes=5")
    with with_callbacks(Minutes()):
        run = train_tiny(tiny, tmp_path / "run", *settings)
    assert checkpoint.complete_steps(run.folder / "checkpoints") == [2, 4, 6]


@pytest.mark.parametrize("criterion", ["loss", "accuracy"])
def test_load_best_makes_the_best_evaluation_the_final_adapter(criterion: str, tiny: Tiny, tmp_path: Path) -> None:
    settings = ("train.max_steps=8", "train.eval_every=2", "train.save_every=3", "train.keep=1")
    # step 4 is made to look by far the best
    with with_callbacks(change=scripted({2: -20.0, 4: 20.0, 6: -20.0, 8: -20.0})):
        best = train_tiny(tiny, tmp_path / "best", *settings, f"train.load_best={criterion}")
    assert best.record["result"]["adapter_step"] == 4
    assert best.record["result"]["steps"] == 8
    assert best.record["result"]["after"]["step"] == 4
    kept = checkpoint.complete_steps(best.folder / "checkpoints")
    assert kept == [4, 8]
    weights = best.folder / "checkpoints" / "step-000004" / checkpoint.ADAPTER_WEIGHTS
    assert weights.read_bytes() == (best.folder / "adapter" / checkpoint.ADAPTER_WEIGHTS).read_bytes()
    last = best.folder / "checkpoints" / "step-000008" / checkpoint.ADAPTER_WEIGHTS
    assert last.read_bytes() != weights.read_bytes()


def test_checkpoints_are_kept_as_configured_and_evaluations_made_when_due(tiny: Tiny, tmp_path: Path) -> None:
    run = train_tiny(
        tiny, tmp_path / "run", "train.max_steps=9", "train.save_every=2", "train.keep=3", "train.eval_every=4"
    )
    assert checkpoint.complete_steps(run.folder / "checkpoints") == [6, 8, 9]
    assert [line["step"] for line in run.metrics if "eval_loss" in line] == [0, 4, 8, 9]
    assert run.record["result"]["adapter_step"] == 9


def test_minutes_save_in_a_real_run(tiny: Tiny, tmp_path: Path) -> None:
    settings = ("train.max_steps=3", "train.save_every=100", "train.keep=9", "train.save_minutes=1e-9")
    run = train_tiny(tiny, tmp_path / "run", *settings)
    assert checkpoint.complete_steps(run.folder / "checkpoints") == [1, 2, 3]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "constant_with_warmup"])
def test_every_schedule_trains_with_its_rates(schedule: str, tiny: Tiny, tmp_path: Path) -> None:
    settings = ("train.max_steps=4", "train.warmup_steps=0", f"train.lr_scheduler_type={schedule}")
    rates = [line["learning_rate"] for line in train_tiny(tiny, tmp_path / "run", *settings).metrics if "loss" in line]
    assert rates[0] == pytest.approx(1e-3)
    if schedule.startswith("constant"):
        assert rates == pytest.approx([1e-3] * 4)
    else:
        assert rates == sorted(rates, reverse=True)
        assert rates[-1] < 0.3e-3


def test_a_warmup_ratio_counts_in_steps(tiny: Tiny, tmp_path: Path) -> None:
    settings = ("train.max_steps=8", "train.warmup_steps=0", "train.warmup_ratio=0.5", "train.lr_scheduler_type=linear")
    rates = [line["learning_rate"] for line in train_tiny(tiny, tmp_path / "run", *settings).metrics if "loss" in line]
    assert rates == pytest.approx([0, 0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def test_the_preset_of_these_tests_says_what_they_rely_on(tiny: Tiny) -> None:
    train = resolve_tiny(tiny).config.train
    assert (train.pairs_per_step, train.max_steps, train.log_every, train.save_minutes) == (8, 20, 1, 60.0)
