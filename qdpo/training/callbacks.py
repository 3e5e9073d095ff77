"""When to evaluate and save, and where the metrics go."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qdpo.files import append, explained
from qdpo.hardware import GIB, Device, peak_memory


class ScheduleCallback(TrainerCallback):
    """Evaluates and saves at the last step, and saves after `save_minutes` whatever the step.

    Args:
        save_minutes: minutes between two checkpoints at the most.
    """

    def __init__(self, save_minutes: float) -> None:
        self.seconds = 60 * save_minutes
        self.saved = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Set what the Trainer does after this step."""
        if state.global_step >= state.max_steps:
            control.should_log = control.should_evaluate = control.should_save = True
        elif time.monotonic() - self.saved >= self.seconds:
            control.should_save = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start counting anew."""
        self.saved = time.monotonic()


class SaveBestCallback(TrainerCallback):
    """Saves a checkpoint at every evaluation that is the best so far, so that it can become the final adapter."""

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Compare with the best; the Trainer itself records it right after this."""
        assert args.metric_for_best_model is not None
        value = kwargs["metrics"][args.metric_for_best_model]
        best = state.best_metric
        if state.global_step and (best is None or (value > best if args.greater_is_better else value < best)):
            control.should_save = True
        return control


class MetricsFile(TrainerCallback):
    """Appends every training and evaluation log to metrics.jsonl, one JSON object a line.

    Args:
        path: the file.
        device: whose peak memory is logged.
        tokens_seen: gives the tokens trained on so far.
    """

    def __init__(self, path: Path, device: Device, tokens_seen: Any) -> None:
        self.path = path
        self.device = device
        self.tokens_seen = tokens_seen
        self.since = (time.monotonic(), 0)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Drop lines of steps that a resumed run will do again."""
        self.since = (time.monotonic(), self.tokens_seen())
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text().splitlines() if step_of(line) <= state.global_step]
        if state.global_step == 0:
            kept = []
        with explained(self.path):
            self.path.write_text("".join(f"{line}\n" for line in kept))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Leave what others do at an evaluation out of the training time."""
        self.since = time.monotonic(), self.tokens_seen()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write one line, unless it is the Trainer's closing summary."""
        logs: dict[str, float] = kwargs["logs"]
        if "loss" not in logs and "eval_loss" not in logs:
            return
        if "loss" in logs:
            now, tokens = time.monotonic(), self.tokens_seen()
            then, before = self.since
            logs["tokens_per_second"] = (tokens - before) / max(now - then, 1e-9)
            logs["peak_memory_gib"] = peak_memory(self.device) / GIB
            self.since = now, tokens
        line = json.dumps({"step": state.global_step, **logs}, allow_nan=False)
        append(self.path, line + "\n")


def step_of(line: str) -> float:
    """The step of a metrics line; a line cut short by a crash counts as beyond every step."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]
