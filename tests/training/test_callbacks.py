"""When a run evaluates and saves, and what stands in metrics.jsonl after a crash."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training.tiny import Tiny, resolve_tiny, train_tiny, with_callbacks
from transformers import TrainerControl, TrainerState

from qdpo.hardware import find_device
from qdpo.run.metrics import read_metrics
from qdpo.training import callbacks, checkpoint
from qdpo.training.callbacks import MetricsFile, SaveBestCallback, ScheduleCallback

ARGS: Any = SimpleNamespace(metric_for_best_model="eval_rewards/accuracies", greater_is_better=True)


def metrics_file(path: Path) -> MetricsFile:
    return MetricsFile(path, find_device(), lambda: 1_000)


def log(callback: MetricsFile, step: int, **logs: float) -> None:
    callback.on_log(ARGS, TrainerState(global_step=step), TrainerControl(), logs=logs)


def begin(callback: MetricsFile, step: int) -> None:
    callback.on_train_begin(ARGS, TrainerState(global_step=step), TrainerControl())


def test_metrics_are_one_json_object_a_line_and_the_closing_summary_is_not_one(tmp_path: Path) -> None:
    callback = metrics_file(tmp_path / "metrics.jsonl")
    begin(callback, 0)
    log(callback, 0, eval_loss=0.7)
    log(callback, 5, loss=0.5)
    log(callback, 5, train_runtime=3.0, train_loss=0.6)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 5]
    assert lines[0] == {"step": 0, "eval_loss": 0.7}
    assert lines[1]["loss"] == 0.5
    assert lines[1]["tokens_per_second"] >= 0
    assert lines[1]["peak_memory_gib"] > 0


def test_a_resume_drops_the_lines_of_steps_that_come_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 3, 4)))
    begin(metrics_file(path), 2)
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize("rest", ['{"step": 2, "lo', '{"step"', "\x00\x00\x00", '{"loss": 1}'])
def test_a_last_line_cut_short_by_a_crash_is_dropped(rest: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n' + rest)
    callback = metrics_file(path)
    begin(callback, 3)
    log(callback, 4, loss=0.5)
    assert [line["step"] for line in read_metrics(path)] == [1, 4]


def test_a_start_from_step_0_leaves_nothing_of_an_earlier_try(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "eval_loss": 0.7}\n{"step": 1, "loss": 1.0}\n')
    begin(metrics_file(path), 0)
    assert path.read_text() == ""


def test_a_value_that_is_not_finite_is_never_written_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        log(metrics_file(tmp_path / "metrics.jsonl"), 1, loss=float("nan"))


def after_step(callback: ScheduleCallback, step: int) -> TrainerControl:
    return callback.on_step_end(ARGS, TrainerState(global_step=step, max_steps=10), TrainerControl())


def test_the_last_step_is_logged_evaluated_and_saved() -> None:
    callback = ScheduleCallback(save_minutes=60)
    control = after_step(callback, 9)
    assert not any((control.should_log, control.should_evaluate, control.should_save))
    control = after_step(callback, 10)
    assert control.should_log
    assert control.should_evaluate
    assert control.should_save


def test_minutes_without_a_checkpoint_ask_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: clock)
    callback = ScheduleCallback(save_minutes=5)
    clock += 299
    assert not after_step(callback, 1).should_save
    clock += 1
    assert after_step(callback, 2).should_save
    callback.on_save(ARGS, TrainerState(), TrainerControl())
    clock += 299
    assert not after_step(callback, 3).should_save


@pytest.mark.parametrize(
    ("best", "value", "greater", "saves"),
    [(None, 0.1, True, True), (0.5, 0.6, True, True), (0.5, 0.5, True, False), (0.5, 0.4, False, True)],
)
def test_only_an_evaluation_better_than_all_before_is_saved(
    best: float | None, value: float, greater: bool, saves: bool
) -> None:
    args: Any = SimpleNamespace(metric_for_best_model="eval_loss", greater_is_better=greater)
    state = TrainerState(global_step=5, best_metric=best)
    control = SaveBestCallback().on_evaluate(args, state, TrainerControl(), metrics={"eval_loss": value})
    assert control.should_save is saves


def test_the_evaluation_before_the_first_step_is_not_a_candidate() -> None:
    metrics = {"eval_rewards/accuracies": 1.0}
    control = SaveBestCallback().on_evaluate(ARGS, TrainerState(global_step=0), TrainerControl(), metrics=metrics)
    assert not control.should_save


def scripted(values: dict[int, float]) -> Any:
    """Evaluations that say what the test wants, by step."""

    def change(trainer: Any) -> None:
        evaluate = trainer.engine.score_all

        def score_all(pairs: Any, budget: int) -> Any:
            scores = evaluate(pairs, budget)
            scores.logps[: len(pairs)] += values.get(trainer.state.global_step, 0.0)
            return scores

        object.__setattr__(trainer.engine, "score_all", score_all)

    return change


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
