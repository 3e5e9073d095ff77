"""The trainer: transformers' loop, optimizers and schedules around the packed engine.

One batch of the Trainer is the global batch of one optimizer step. `training_step` cuts it into micro-batches by
packed tokens; how it is cut never changes the mathematics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

from qdpo.config.schema import PackingSection
from qdpo.config.steps import steps_per_epoch
from qdpo.data.pairs import TokenPair
from qdpo.errors import TrainingError
from qdpo.packing.engine import Engine, text_nll
from qdpo.packing.logps import PackScores
from qdpo.training.checkpointing import WholeCheckpoints
from qdpo.training.losses import LossSettings, PairLogps, logp_gradients, pair_losses
from qdpo.training.metrics import Metrics
from qdpo.training.order import EpochSampler

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Split:
    """Pairs and what the reference says of them.

    Attributes:
        pairs: n token pairs.
        reference: (n, 2) log-probabilities under the reference, chosen and rejected, in nats.
    """

    pairs: Sequence[TokenPair]
    reference: Tensor


class DpoTrainer(WholeCheckpoints):
    """Trains an adapter on preference pairs.

    Args:
        policy: the model with its adapter.
        args: transformers' arguments; per_device_train_batch_size is the global batch.
        train: what to learn from.
        heldout: what to evaluate on.
        text: held-out plain texts as ids, possibly none.
        loss: the loss and its constants.
        packing: token budgets.
        way: how pairs are laid out, see `qdpo.packing.engine.WAYS`.
        base_name: what the adapter names as its base.
        keep: checkpoints to keep.
        callbacks: besides the Trainer's own.
    """

    def __init__(
        self,
        policy: PeftModel,
        args: TrainingArguments,
        *,
        train: Split,
        heldout: Split,
        text: list[list[int]],
        loss: LossSettings,
        packing: PackingSection,
        way: str = "packed",
        base_name: str,
        keep: int,
        callbacks: list[TrainerCallback],
    ) -> None:
        self.policy = policy
        self.train_split = train
        self.heldout = heldout
        self.text = text
        self.loss_settings = loss
        self.packing = packing
        self.base_name = base_name
        self.keep = keep
        self.train_metrics = Metrics()
        self.tokens_seen = 0
        self.heldout_logps: dict[int, Tensor] = {}
        super().__init__(
            model=policy,
            args=args,
            train_dataset=range(len(train.pairs)),
            eval_dataset=range(len(heldout.pairs)),
            callbacks=callbacks,
        )
        self.model_accepts_loss_kwargs = False
        self.sampler = EpochSampler(len(train.pairs), args.seed)
        self.engine = Engine(
            policy.get_base_model(), next(policy.parameters()).device, self.compute_loss_context_manager, way
        )

    # ------------------------------------------------------------------------------------------------------- the data

    def get_train_dataloader(self) -> DataLoader:
        """Batches of pair numbers, in the order that the seed and the epoch decide."""
        n, size = len(self.train_split.pairs), self.args.per_device_train_batch_size
        loader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_size=size,
            sampler=self.sampler,
            drop_last=n >= size,
            collate_fn=lambda indices: {"indices": torch.tensor(indices)},
        )
        return self.accelerator.prepare(loader)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """transformers would count the pair numbers as input; tokens are counted in `training_step` instead."""
        return 0

    # ------------------------------------------------------------------------------------------------------- the step

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward over one global batch, micro-batch by micro-batch.

        Returns:
            The step's loss, a scalar without gradient.

        Raises:
            TrainingError: the loss is not finite.
        """
        model.train()
        indices = inputs["indices"].tolist()
        pairs = [self.train_split.pairs[i] for i in indices]
        reference = self.train_split.reference[indices].to(self.engine.device)
        mean_chosen = sum(len(pair.chosen) for pair in pairs) / len(pairs)
        groups = self.engine.cut(pairs, self.packing.tokens_per_micro_batch)
        coupled = self._coupled_gradients(pairs, reference, mean_chosen) if self.loss_settings.couples_pairs else None
        total = torch.zeros((), device=self.engine.device)
        for group in groups:
            scores = self.engine.score([pairs[i] for i in group], group)
            batch = pair_logps(scores, reference[group], mean_chosen)
            if coupled is None:
                losses = pair_losses(batch, self.loss_settings)
                loss = losses.sum() / len(pairs)
                total += loss.detach()
            else:
                losses, grad_chosen, grad_rejected = (values[group] for values in coupled)
                loss = (grad_chosen * batch.chosen + grad_rejected * batch.rejected).sum()
                total += losses.sum() / len(pairs)
            self.accelerator.backward(loss)
            self.train_metrics.add_pack(scores, batch, self.loss_settings.beta)
        self.tokens_seen += sum(len(pair.prompt) * 2 + len(pair.chosen) + len(pair.rejected) for pair in pairs)
        if not torch.isfinite(total):
            rows = [self.train_split.pairs[i].row for i in indices]
            raise TrainingError(
                f"the loss of step {self.state.global_step + 1} is {total.item()} (rows {rows})",
                "lower train.learning_rate or train.max_grad_norm, or look at these rows; "
                "the last checkpoint is intact",
            )
        return total

    def _coupled_gradients(
        self, pairs: list[TokenPair], reference: Tensor, mean_chosen: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses that sort the whole batch: their gradient for each log-probability, from a pass without gradients."""
        with torch.random.fork_rng(devices=[self.engine.device] if self.engine.device.type == "cuda" else []):
            scores = self.engine.score_all(pairs, self.packing.tokens_without_grad)
        batch = pair_logps(to_device(scores, self.engine.device), reference, mean_chosen)
        return logp_gradients(batch, self.loss_settings)

    # ----------------------------------------------------------------------------------------------- logs, evaluation

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of the steps since the last log to a training log."""
        if "loss" in logs:
            logs |= self.train_metrics.read()
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the held-out pairs (and texts) and log TRL's metrics with the prefix."""
        scores = self.engine.score_all(self.heldout.pairs, self.packing.tokens_without_grad)
        mean_chosen = sum(len(pair.chosen) for pair in self.heldout.pairs) / len(self.heldout.pairs)
        batch = pair_logps(scores, self.heldout.reference, mean_chosen)
        self.heldout_logps[self.state.global_step] = torch.stack([batch.chosen, batch.rejected], 1).cpu()
        metrics = Metrics()
        metrics.add_pack(scores, batch, self.loss_settings.beta)
        values = {"loss": float(pair_losses(batch, self.loss_settings).mean()), **metrics.read()}
        if self.text:
            values["text_nll"] = text_nll(self.engine, self.text, self.packing.tokens_without_grad)
        logs = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs


class EpochCallback(TrainerCallback):
    """Tells the sampler which epoch begins, counted from the steps done, so that a resume sees the same order."""

    def __init__(self, trainer: DpoTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch."""
        per_epoch = steps_per_epoch(len(self.trainer.train_split.pairs), args.per_device_train_batch_size)
        self.trainer.sampler.epoch = state.global_step // per_epoch


def pair_logps(scores: PackScores, reference: Tensor, mean_chosen_tokens: float) -> PairLogps:
    """The 2n sequence scores of n pairs and the reference's (n, 2), as the losses take them."""
    chosen, rejected = scores.logps.chunk(2)
    chosen_tokens, rejected_tokens = scores.tokens.chunk(2)
    reference = reference.to(chosen.device, chosen.dtype)
    return PairLogps(
        chosen, rejected, reference[:, 0], reference[:, 1], chosen_tokens, rejected_tokens, mean_chosen_tokens
    )


def to_device(scores: PackScores, device: torch.device) -> PackScores:
    """The same scores on a device."""
    parts = (scores.logps, scores.tokens, scores.logits, scores.entropy, scores.top1)
    return PackScores(*(part.to(device) for part in parts))
