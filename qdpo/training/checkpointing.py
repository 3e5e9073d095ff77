"""What a transformers Trainer does with checkpoints, done qdpo's way: whole or absent, and no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import Trainer, TrainerState

from qdpo.files import explained, staged_folder, write_json
from qdpo.training import checkpoint

if TYPE_CHECKING:
    from peft import PeftModel


class WholeCheckpoints(Trainer):
    """Saves and resumes with `qdpo.training.checkpoint`; stands before the Trainer that it is mixed into.

    Attributes:
        policy: the model with its adapter.
        base_name: what the adapter names as its base.
        keep: checkpoints to keep.
        tokens_seen: tokens trained on so far.
    """

    policy: PeftModel
    base_name: str
    keep: int
    tokens_seen: int

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, or continue; a checkpoint of the last step is taken as it is.

        transformers looks at the number of steps only after a step, and would make one too many.
        """
        if isinstance(resume_from_checkpoint, str):
            folder = Path(resume_from_checkpoint)
            state = TrainerState.load_from_json(str(folder / checkpoint.TRAINER_STATE))
            if state.global_step >= state.max_steps:
                checkpoint.read_adapter(self.policy, folder)
                self.state, self.tokens_seen = state, checkpoint.read_progress(folder)
                return None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    @property
    def checkpoints(self) -> Path:
        """The folder of this run's checkpoints."""
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = checkpoint.step_folder(self.checkpoints, self.state.global_step)
        with staged_folder(folder, replace=True) as staging:
            checkpoint.write_adapter(self.policy, staging, self.base_name)
            checkpoint.write_optimizer(self.optimizer, staging)
            assert self.lr_scheduler is not None
            write_json(staging / "scheduler.json", self.lr_scheduler.state_dict())
            if self.accelerator.scaler is not None:
                write_json(staging / "scaler.json", self.accelerator.scaler.state_dict())
            checkpoint.write_rng(staging)
            checkpoint.write_progress(staging, self.tokens_seen)
            self.state.save_to_json(str(staging / checkpoint.TRAINER_STATE))
        with explained(self.checkpoints):
            checkpoint.prune(self.checkpoints, self.keep, self.state.best_global_step or None)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoint.read_adapter(self.policy, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is None:
            return
        folder = Path(checkpoint_folder)
        checkpoint.read_optimizer(self.optimizer, folder)
        assert self.lr_scheduler is not None
        self.lr_scheduler.load_state_dict(json.loads((folder / "scheduler.json").read_text()))
        self.tokens_seen = checkpoint.read_progress(folder)

    def _load_scaler(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is not None and self.accelerator.scaler is not None:
            state = json.loads((Path(checkpoint_folder) / "scaler.json").read_text())
            self.accelerator.scaler.load_state_dict(state)

    def _load_rng_state(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is not None:
            checkpoint.read_rng(Path(checkpoint_folder))
