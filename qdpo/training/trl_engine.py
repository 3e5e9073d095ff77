"""`engine: trl`: stock `trl.DPOTrainer` on the same pairs, in the same order, with the same schedule and files.

TRL computes the log-probabilities, the reference's included, the loss and the metrics. Ours are the token ids, the
order, the checkpoints and the callbacks. It is there for what the packed engine refuses, and to compare with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
import trl.trainer.utils
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from qdpo import console
from qdpo.config.loss import COUPLED
from qdpo.config.schema import PackingSection, RunConfig
from qdpo.config.steps import steps_for, steps_per_epoch
from qdpo.data.pairs import TokenPair
from qdpo.engine.engine import Engine, text_nll
from qdpo.engine.padded import longest
from qdpo.errors import ConfigError, UnavailableError
from qdpo.hardware import Device
from qdpo.training.checkpointing import WholeCheckpoints
from qdpo.training.guards import GuardCallback, Skips, not_finite
from qdpo.training.order import permutation

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from qdpo.data.prepare import Prepared

WAY_OUT = "set engine: packed, which needs no Triton"
NEWER = f"install trl 1.16, which runs here without Triton, or {WAY_OUT}"

NOT_LOGGED = ("num_tokens", "runtime", "samples_per_second", "steps_per_second")
"""What TRL and transformers add to a log, and a run of the packed engine does not have."""

NOT_USED = ("checkpoint_layers", "fused_lora", "fused_mlp", "fused_norm", "skip_unscored", "reference_cache")
"""Settings of the packed engine alone."""


def check(config: RunConfig, device: Device) -> None:
    """Whether TRL can run this configuration here, before anything is loaded.

    Raises:
        UnavailableError: TRL's fused output head does not run on this device.
        ConfigError: TRL would ignore a setting.
    """
    utils: Any = trl.trainer.utils
    head, name = utils._ChunkedLogProbFunction, f"engine: trl: the fused output head of TRL {version('trl')}"
    # from 1.16 on TRL has its head in torch too, and says where it takes Triton's
    uses_triton = getattr(utils, "_use_triton", lambda device: True)(torch.device(device.kind))
    if head is None:
        raise UnavailableError(f"{name} needs Triton, which is not installed", NEWER)
    if head.__module__.startswith("trl.") and uses_triton:
        if device.kind != "cuda":
            raise UnavailableError(f"{name} is Triton's, and runs on a GPU only", NEWER)
        if device.capability is not None and device.capability < (8, 0):
            raise UnavailableError(
                f"{name} is Triton's, which needs compute capability 8.0; "
                f"{device.name} has {device.capability[0]}.{device.capability[1]}",
                WAY_OUT,
            )
    default = PackingSection()
    unused = [name for name in NOT_USED if getattr(config.packing, name) != getattr(default, name)]
    if unused:
        names = ", ".join(f"packing.{name}" for name in unused)
        console.note(f"engine: trl has no use for {names}: TRL runs the model as it is, and its own reference pass")
    if config.loss.label_smoothing and "sigmoid" in config.loss.loss_type:
        raise ConfigError(
            f"loss.label_smoothing is {config.loss.label_smoothing}, which TRL ignores in the loss sigmoid",
            "set loss.label_smoothing to 0, take the loss robust, or set engine: packed for cDPO",
        )


class StepSampler(Sampler[int]):
    """The order that the packed engine visits pairs in: whole steps only, an epoch known from the steps done.

    Args:
        trainer: whose step is asked.
        n: training pairs.
        step: pairs of one optimizer step.
    """

    def __init__(self, trainer: TrlTrainer, n: int, step: int) -> None:
        self.trainer, self.n, self.step = trainer, n, step
        self.per_epoch = steps_per_epoch(n, step)

    def __len__(self) -> int:
        return self.per_epoch * self.step

    def __iter__(self) -> Iterator[int]:
        epoch = self.trainer.state.global_step // self.per_epoch
        return iter(permutation(self.n, self.trainer.args.seed, epoch)[: len(self)])


class TrlTrainer(WholeCheckpoints, DPOTrainer):
    """TRL's trainer, given token ids instead of text, with our order, checkpoints and metric names.

    Args:
        policy: the model with its adapter, which stays fp32.
        arguments: of transformers' TrainingArguments, as the packed engine has them.
        config: the run's.
        data: train and held-out pairs, held-out texts.
        tokenizer: not changed.
        callbacks: besides the Trainer's own.
    """

    def __init__(
        self,
        policy: PeftModel,
        arguments: dict[str, Any],
        config: RunConfig,
        data: Prepared,
        tokenizer: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback],
    ) -> None:
        self.policy, self.text = policy, data.text
        self.base_name, self.keep = config.model.name, config.train.keep
        self.budget = config.packing.tokens_without_grad
        self.skips = Skips()
        self.rows = [pair.row for pair in data.train]
        half = config.packing.tokens_per_micro_batch // 2
        self.more_memory = (f"packing.tokens_per_micro_batch={half}", *self.more_memory)
        # TRL rounds the adapter of a quantized base to bf16; ours is fp32
        before = {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}
        super().__init__(
            model=policy,
            args=trl_arguments(arguments, config, data.train),
            train_dataset=as_dataset(data.train),
            eval_dataset=as_dataset(data.heldout),
            # TRL gives it a pad token
            processing_class=deepcopy(tokenizer),
            callbacks=callbacks,
        )
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                parameter.data = before[name]
        if config.reference == "base":
            # TRL takes a ready adapter for one that was trained, and a copy of it for the reference
            policy.delete_adapter("ref")
        self.model_accepts_loss_kwargs = False
        self.add_callback(GuardCallback(self))
        self.sampler = StepSampler(self, len(data.train), min(len(data.train), config.train.pairs_per_step))

    @property
    def tokens_seen(self) -> int:
        """Tokens trained on so far, padding not counted."""
        return int(self._total_train_tokens)

    @tokens_seen.setter
    def tokens_seen(self, value: int) -> None:
        self._total_train_tokens = value

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        """The pairs are tokens already."""
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        return self.sampler

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Tensor:
        outputs: list[Any] = []
        # the policy's pass comes first, the reference's second
        watch = model.register_forward_hook(lambda module, args, output: outputs.append(output))
        try:
            loss = super()._compute_loss(model, inputs, return_outputs)
        finally:
            watch.remove()
        chosen, rejected = outputs[0].log_probs.detach().sum(dim=1).chunk(2)
        metrics = self._metrics["train" if self.policy.training else "eval"]
        metrics["logps/accuracies"].append((chosen > rejected).float().mean().item())
        if not self.policy.training:
            # TRL takes the mean of the batches' means; the last batch may be a small one
            metrics["loss"].append(loss.item())
            for values in metrics.values():
                values.extend(values[-1:] * (len(chosen) - 1))
        elif not torch.isfinite(loss):
            # TRL's batch does not say which pairs it holds
            raise not_finite("the loss", self.state.global_step + 1, self.rows_of_step(), self.policy)
        return loss

    def rows_of_step(self) -> list[int]:
        """The rows of the step at hand, all of its batches'."""
        epoch, place = divmod(self.state.global_step, self.sampler.per_epoch)
        order = permutation(self.sampler.n, self.args.seed, epoch)
        return sorted(self.rows[i] for i in order[place * self.sampler.step : (place + 1) * self.sampler.step])

    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        limit = self.args.max_steps if self.args.max_steps > 0 else None
        return steps_for(self.sampler.n, self.sampler.step, self.args.num_train_epochs, limit)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """TRL's evaluation, with the held-out texts'."""
        if self.text:
            engine = Engine(
                self.policy.get_base_model(), self.accelerator.device, self.accelerator.autocast, "unshared"
            )
            self._metrics["eval"]["text_nll"] = [text_nll(engine, self.text, self.budget)]
        return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what the packed engine logs, under its names."""
        for metrics in self._metrics.values():
            metrics.pop("num_tokens", None)
        for name in NOT_LOGGED:
            logs.pop(f"eval_{name}", None)
        if "loss" in logs:
            logs |= self.scaler_metrics(logs)
        super().log(logs, start_time)


def as_dataset(pairs: Sequence[TokenPair]) -> Dataset:
    """Pairs as TRL's collator wants them."""
    return Dataset.from_dict(
        {f"{side}_ids": [list(getattr(pair, side)) for pair in pairs] for side in ("prompt", "chosen", "rejected")}
    )


def pairs_per_batch(config: RunConfig, pairs: Sequence[TokenPair]) -> int:
    """Pairs of one padded pass: the largest divisor of a step that fits packing.tokens_per_micro_batch.

    Losses that look at the step as a whole are given all of it.
    """
    step = min(len(pairs), config.train.pairs_per_step)
    if not COUPLED.union({"sft"}).isdisjoint(config.loss.loss_type):
        return step
    room = config.packing.tokens_per_micro_batch // (2 * max(map(longest, pairs)))
    return max(size for size in range(1, step + 1) if step % size == 0 and (size == 1 or size <= room))


def trl_arguments(arguments: dict[str, Any], config: RunConfig, pairs: Sequence[TokenPair]) -> DPOConfig:
    """The configuration in TRL's terms; a step is cut into padded batches of equal size."""
    step = min(len(pairs), config.train.pairs_per_step)
    size = pairs_per_batch(config, pairs)
    console.note(f"engine: stock TRL {version('trl')}, {size} of a step's {step} pairs in a padded batch")
    changed = {
        "per_device_train_batch_size": size,
        "per_device_eval_batch_size": size,
        "gradient_accumulation_steps": step // size,
        "gradient_checkpointing": config.train.gradient_checkpointing,
        "prediction_loss_only": True,
        "disable_dropout": config.train.disable_dropout,
        # the pairs were cut when they were tokenised
        "max_length": None,
    }
    return DPOConfig(**(arguments | config.loss.model_dump() | changed))
