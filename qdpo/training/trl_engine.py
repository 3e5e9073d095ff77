"""`engine: trl`: stock `trl.DPOTrainer` computes every pass, on the same pairs, in the same order, for the same files.

TRL computes the log-probabilities, the reference's included, the loss and the metrics. Ours are the token ids, the
order, the optimizer's step and the checkpoints. It is there for what the packed engine refuses, and to compare with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from copy import deepcopy
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
import trl.trainer.utils
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from qdpo import console
from qdpo.config.loss import COUPLED
from qdpo.config.schema import PackingSection, RunConfig
from qdpo.data.pairs import TokenPair
from qdpo.engine.engine import Engine, evaluating, text_nll
from qdpo.engine.layouts import longest
from qdpo.errors import ConfigError, UnavailableError
from qdpo.hardware import Device
from qdpo.run.folder import CHECKPOINTS
from qdpo.training import parallel
from qdpo.training.guards import StepWatch
from qdpo.training.out_of_memory import Budgets
from qdpo.training.recipe import Recipe, Split
from qdpo.training.stages.state import RunState

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from qdpo.data.prepare import Prepared

WAY_OUT = "set engine: packed, which needs no Triton"
NEWER = f"install trl 1.16, which runs here without Triton, or {WAY_OUT}"

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


class _Trainer(DPOTrainer):
    """TRL's trainer, given token ids instead of text."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        """The pairs are tokens already."""
        return dataset


class TrlRecipe(Recipe):
    """The recipe with every pass by TRL: its batches, its reference, its loss and its metrics, through `compute_loss`.

    Args:
        run: see `Recipe`.
        policy: the model with its adapter, which stays fp32.
        engine: runs the held-out texts.
        data: train and held-out pairs, held-out texts.
        tokenizer: not changed.
        settings: see `Recipe`.
    """

    def __init__(
        self,
        run: RunState,
        policy: PeftModel,
        engine: Engine,
        data: Prepared,
        tokenizer: PreTrainedTokenizerBase,
        **settings: Any,
    ) -> None:
        config = run.config
        # TRL rounds the adapter of a quantized base to bf16; ours is fp32
        before = {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}
        self.rows = {"train": as_dataset(data.train), "eval": as_dataset(data.heldout)}
        self.trl = _Trainer(
            model=policy,
            args=trl_arguments(run, data.train),
            train_dataset=self.rows["train"],
            eval_dataset=self.rows["eval"],
            # TRL gives it a pad token
            processing_class=deepcopy(tokenizer),
        )
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                parameter.data = before[name]
        if config.reference == "base":
            # TRL takes a ready adapter for one that was trained, and a copy of it for the reference
            policy.delete_adapter("ref")
        if config.train.gradient_checkpointing:
            policy.gradient_checkpointing_enable(self.trl.args.gradient_checkpointing_kwargs)
        unknown = torch.empty(0, 2)
        super().__init__(
            run,
            policy,
            engine,
            train=Split(data.train, unknown),
            heldout=Split(data.heldout, unknown),
            text=data.text,
            budgets=Budgets(config),
            **settings,
        )

    def forward_backward(self, batch: Sequence[int], when: str = "") -> Tensor:
        """Forward and backward over one global batch, in padded batches of equal size."""
        torch.manual_seed(parallel.seed(self.config.train.seed, self.progress.step))
        return self.passes(batch)

    def passes(self, batch: Sequence[int]) -> Tensor:
        """TRL's batches of one step, each with its part of the loss."""
        self.watch = StepWatch([self.train_split.pairs[i].row for i in batch])
        total = torch.zeros((), device=self.device)
        size = self.trl.args.per_device_train_batch_size
        for begin in range(0, len(batch), size):
            group = range(begin, min(begin + size, len(batch)))
            loss, chosen, rejected = self._compute("train", [batch[i] for i in group])
            self.watch.saw(list(group), chosen, rejected, loss.expand(len(group)))
            loss = loss * len(group) / len(batch)
            total += loss.detach()
            self.backward(loss)
        return total

    def _compute(self, part: str, numbers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """TRL's loss of some pairs, and the log-probabilities of their completions."""
        outputs: list[Any] = []
        # the policy's pass comes first, the reference's second
        watch = self.policy.register_forward_hook(lambda module, args, output: outputs.append(output))
        inputs = self.trl.data_collator([self.rows[part][i] for i in numbers])
        inputs = {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
        try:
            with self.engine.autocast():
                loss = self.trl.compute_loss(self.policy, inputs)
        finally:
            watch.remove()
        chosen, rejected = outputs[0].log_probs.detach().sum(dim=1).chunk(2)
        self.trl._metrics[part]["logps/accuracies"].append((chosen > rejected).float().mean().item())
        return loss, chosen, rejected

    def step_metrics(self) -> dict[str, float]:
        """The means of TRL's metrics over the batches since the last call."""
        return self._read("train")

    def _read(self, part: str) -> dict[str, float]:
        metrics = self.trl._metrics[part]
        values = {name: sum(found) / len(found) for name, found in metrics.items() if name != "num_tokens" and found}
        metrics.clear()
        return values

    def score_heldout(self) -> dict[str, float]:
        """TRL's metrics of the held-out pairs, each pair with the same weight, and the loss of held-out texts."""
        count, size = len(self.heldout.pairs), self.trl.args.per_device_eval_batch_size
        totals: defaultdict[str, float] = defaultdict(float)
        with torch.no_grad(), evaluating(self.policy):
            for begin in range(0, count, size):
                numbers = range(begin, min(begin + size, count))
                loss, _, _ = self._compute("eval", numbers)
                for name, value in {"loss": loss.item(), **self._read("eval")}.items():
                    totals[name] += value * len(numbers)
        values = {name: total / count for name, total in totals.items()}
        if self.text:
            values["text_nll"] = text_nll(self.engine, self.text, self.config.packing.tokens_without_grad)
        return values

    def more_memory(self) -> tuple[str, ...]:
        """Smaller batches, and what helps besides."""
        half = self.config.packing.tokens_per_micro_batch // 2
        return (f"packing.tokens_per_micro_batch={half}", *super().more_memory())


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


def trl_arguments(run: RunState, pairs: Sequence[TokenPair]) -> DPOConfig:
    """What TRL must know of the configuration; a step is cut into padded batches of equal size."""
    config = run.config
    step = min(len(pairs), config.train.pairs_per_step)
    size = pairs_per_batch(config, pairs)
    console.note(f"engine: stock TRL {version('trl')}, {size} of a step's {step} pairs in a padded batch")
    return DPOConfig(
        output_dir=str(run.folder / CHECKPOINTS),
        per_device_train_batch_size=size,
        per_device_eval_batch_size=size,
        gradient_checkpointing=config.train.gradient_checkpointing,
        disable_dropout=config.train.disable_dropout,
        # the pairs were cut when they were tokenised
        max_length=None,
        # the recipe makes the context of a pass
        bf16=False,
        fp16=False,
        use_cpu=run.device.kind == "cpu",
        report_to="none",
        **config.loss.model_dump(),
    )
