"""What a transformers Trainer does with checkpoints, done qdpo's way: whole or absent, and no pickle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerState

from qdpo.errors import MemoryShortageError
from qdpo.files import explained, staged_folder, write_json
from qdpo.hardware import is_out_of_memory
from qdpo.model.lora import trainable
from qdpo.training import checkpoint, parallel
from qdpo.training.early_stop import ended_early
from qdpo.training.guards import Skips
from qdpo.training.preflight import checkpoint_bytes

if TYPE_CHECKING:
    from peft import PeftModel


class WholeCheckpoints(Trainer):
    """Saves and resumes with `qdpo.training.checkpoint`; stands before the Trainer that it is mixed into.

    Attributes:
        policy: the model with its adapter.
        base_name: what the adapter names as its base.
        keep: checkpoints to keep.
        tokens_seen: tokens trained on so far.
        skips: steps that the fp16 scaler skipped.
        run_id: of the run, which every checkpoint names.
        more_memory: settings to try when memory runs out outside of the passes, which can be made smaller.
    """

    policy: PeftModel
    base_name: str
    keep: int
    tokens_seen: int
    skips: Skips
    run_id: str = ""
    more_memory: tuple[str, ...] = ("train.optim=paged_adamw_8bit", "lora.r=8")

    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        raise NotImplementedError

    def rows_of_step(self) -> list[int]:
        """Row numbers of the pairs of the step at hand."""
        raise NotImplementedError

    def suspects(self) -> list[int]:
        """The rows that may be the reason when the step's gradients are not finite."""
        return self.rows_of_step()

    def scaler_metrics(self, logs: dict[str, float]) -> dict[str, float]:
        """What fp16's scaler has done, for a log; a norm that overflowed is the reason of a skip, and no number."""
        if self.accelerator.scaler is None:
            return {}
        if self.accelerator.optimizer_step_was_skipped:
            logs.pop("grad_norm", None)
        return {"skipped_steps": self.skips.total, "loss_scale": self.accelerator.scaler.get_scale()}

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, or continue; a checkpoint of the last step is taken as it is.

        transformers looks at the number of steps only after a step, and would make one too many.
        """
        if isinstance(resume_from_checkpoint, str):
            folder = Path(resume_from_checkpoint)
            state = TrainerState.load_from_json(str(folder / checkpoint.TRAINER_STATE))
            if state.global_step >= self.total_steps() or ended_early(
                self.callback_handler.callbacks, state.global_step
            ):
                checkpoint.read_adapter(self.policy, folder)
                self.state = state
                self._load_progress(folder)
                return None
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            first, second = self.more_memory[:2]
            raise MemoryShortageError(
                f"out of memory in step {self.state.global_step + 1}; what was saved is intact",
                f"try --set {first}, or --set {second}",
            ) from error

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        where = super()._init_training_state(max_steps, *args, **kwargs)
        # the state that was saved brings its own intervals; the configuration's hold
        self.state.compute_steps(self.args, max_steps)
        return where

    @property
    def checkpoints(self) -> Path:
        """The folder of this run's checkpoints."""
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if not parallel.is_first():
            return
        folder = checkpoint.step_folder(self.checkpoints, self.state.global_step)
        needed = checkpoint_bytes(trainable(self.policy).values(), self.args.optim, len(self.state.log_history))
        with staged_folder(folder, replace=True, needed=needed) as staging:
            checkpoint.write_adapter(self.policy, staging, self.base_name)
            checkpoint.write_optimizer(self.optimizer, staging)
            assert self.lr_scheduler is not None
            write_json(staging / "scheduler.json", self.lr_scheduler.state_dict())
            if self.accelerator.scaler is not None:
                write_json(staging / "scaler.json", self.accelerator.scaler.state_dict())
            checkpoint.write_rng(staging)
            checkpoint.write_progress(
                staging,
                {
                    "run": self.run_id,
                    "step": self.state.global_step,
                    "tokens_seen": self.tokens_seen,
                    "skipped_steps": self.skips.total,
                    "skipped_in_a_row": self.skips.in_a_row,
                },
            )
            self.state.save_to_json(str(staging / checkpoint.TRAINER_STATE))
        with explained(self.checkpoints):
            checkpoint.prune(self.checkpoints, self.keep, self.state.best_global_step or None)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoint.read_adapter(self.policy, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is None:
            return
        folder = Path(checkpoint_folder)
        optimizer: Any = self.optimizer
        scheduler: Any = self.lr_scheduler
        # A resume may have been allowed to change the optimizer's settings or the schedule: they are the
        # configuration's, and only what was learned is the checkpoint's.
        settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        rates = list(scheduler.base_lrs)
        checkpoint.read_optimizer(optimizer, folder)
        scheduler.load_state_dict(json.loads((folder / "scheduler.json").read_text()) | {"base_lrs": rates})
        steps = scheduler.last_epoch
        scheduler._last_lr = [rate * shape(steps) for rate, shape in zip(rates, scheduler.lr_lambdas, strict=True)]
        for group, ours, rate in zip(optimizer.param_groups, settings, scheduler._last_lr, strict=True):
            group.update(ours | {"lr": rate})
        self._load_progress(folder)

    def _load_progress(self, folder: Path) -> None:
        progress = checkpoint.read_progress(folder)
        self.tokens_seen = progress["tokens_seen"]
        self.skips = Skips(progress["skipped_steps"], progress["skipped_in_a_row"])

    def _load_scaler(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is not None and self.accelerator.scaler is not None:
            state = json.loads((Path(checkpoint_folder) / "scaler.json").read_text())
            self.accelerator.scaler.load_state_dict(state)

    def _load_rng_state(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is not None:
            checkpoint.read_rng(Path(checkpoint_folder))


class SavedStep(TrainerCallback):
    """Notes in run.json that a checkpoint was written, so that a run which loses them all does not begin anew.

    Args:
        save: updates run.json.
    """

    def __init__(self, save: Callable[..., None]) -> None:
        self.save = save

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the step."""
        self.save(saved_step=state.global_step)
