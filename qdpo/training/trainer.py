"""The trainer: transformers' loop, optimizers and schedules around the packed engine.

One batch of the Trainer is the global batch of one optimizer step. `training_step` cuts it into micro-batches by
packed tokens; how it is cut never changes the mathematics.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

from qdpo.config.loss import LossSettings
from qdpo.config.steps import steps_for, steps_per_epoch
from qdpo.data.pairs import TokenPair
from qdpo.engine.engine import Engine, nll, text_pairs
from qdpo.engine.layout import packed_tokens
from qdpo.engine.logps import PackScores
from qdpo.engine.transfer import to_device
from qdpo.engine.used import Products, Used, check_used
from qdpo.errors import TrainingError
from qdpo.hardware import is_out_of_memory
from qdpo.planner.parts import LORA, is_paged, optimizer_bytes, step_temporaries
from qdpo.training import parallel
from qdpo.training.checkpointing import WholeCheckpoints
from qdpo.training.guards import GuardCallback, Skips, StepWatch, name_rows
from qdpo.training.losses import PairLogps, logp_gradients, pair_losses
from qdpo.training.metrics import Metrics
from qdpo.training.order import EpochSampler, permutation
from qdpo.training.out_of_memory import Budgets, Need, need_of, tokens_of

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
        engine: runs the policy's model; the one that was probed and checked, so that what trains is what was tested.
        train: what to learn from.
        heldout: what to evaluate on.
        text: held-out plain texts as ids, possibly none.
        loss: the loss and its constants.
        budgets: tokens of a pass.
        try_longest: run the run's longest micro-batch before the first step, so that too little memory shows at once.
        base_name: what the adapter names as its base.
        keep: checkpoints to keep.
        callbacks: besides the Trainer's own.
    """

    def __init__(
        self,
        policy: PeftModel,
        args: TrainingArguments,
        engine: Engine,
        *,
        train: Split,
        heldout: Split,
        text: list[list[int]],
        loss: LossSettings,
        budgets: Budgets,
        try_longest: bool = False,
        base_name: str,
        keep: int,
        callbacks: list[TrainerCallback],
    ) -> None:
        self.policy = policy
        self.engine = engine
        self.train_split = train
        self.heldout = heldout
        self.text = text
        self.loss_settings = loss
        self.budgets = budgets
        self.try_longest = try_longest
        self.base_name = base_name
        self.keep = keep
        self.train_metrics = Metrics()
        self.tokens_seen = 0
        self.skips = Skips()
        self.used: Used | None = None
        self.longest: list[int] = []
        self.watch = StepWatch([])
        self.heldout_logps: dict[int, Tensor] = {}
        super().__init__(
            model=policy,
            args=args,
            train_dataset=range(len(train.pairs)),
            eval_dataset=range(len(heldout.pairs)),
            callbacks=callbacks,
        )
        self.model_accepts_loss_kwargs = False
        if parallel.world() > 1:
            # gradients are summed in `training_step`; DistributedDataParallel would look for its own forward pass
            self.accelerator.prepare_model = lambda model, **settings: model
        self.add_callback(GuardCallback(self))
        self.sampler = EpochSampler(len(train.pairs), args.seed)

    # ------------------------------------------------------------------------------------------------------- the data

    def get_train_dataloader(self) -> DataLoader:
        """Batches of pair numbers, in the order that the seed and the epoch decide."""
        n, size = len(self.train_split.pairs), self.args.per_device_train_batch_size
        loader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_size=size,
            sampler=self.sampler,
            drop_last=n >= size,
            # plain numbers, which accelerate does not move to the GPU, where they would have to be read back
            collate_fn=lambda indices: {"indices": indices},
        )
        # accelerate would give every process other batches; all take the same one, and share its pairs
        return loader if parallel.world() > 1 else self.accelerator.prepare(loader)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """transformers would count the pair numbers as input; tokens are counted in `training_step` instead."""
        return 0

    # ------------------------------------------------------------------------------------------------------- the step

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward over one global batch, micro-batch by micro-batch; smaller ones when memory runs out.

        Returns:
            The step's loss, a scalar without gradient.

        Raises:
            TrainingError: a log-probability or loss is not finite, or what is fused did not run so.
            MemoryShortageError: not even a single pair fits.
        """
        model.train()
        indices: list[int] = inputs["indices"]
        if parallel.world() > 1:
            # each process draws dropout of its own, and the same again after a resume
            torch.manual_seed(parallel.seed(self.args.seed, self.state.global_step))
        counting = Products() if self.used is None else contextlib.nullcontext()
        self.engine.fusion.calls.clear()
        with counting:
            total = self._within_memory(indices, f"step {self.state.global_step + 1}")
        if isinstance(counting, Products):
            self.used = Used.of(self.engine.fusion, counting)
            check_used(self.engine.model, self.engine.fusion, self.used)
        pairs = [self.train_split.pairs[i] for i in indices]
        self.tokens_seen += sum(len(pair.prompt) * 2 + len(pair.chosen) + len(pair.rejected) for pair in pairs)
        with parallel.failing_together():
            self.watch.check(self.state.global_step + 1, self.policy)
        parallel.sum_gradients(self.policy.parameters())
        return parallel.summed(total)

    def rows_of_step(self) -> list[int]:
        """The rows of the step at hand."""
        return sorted(self.watch.rows)

    def suspects(self) -> list[int]:
        """The rows after which the gradients of the step at hand were not finite."""
        return self.watch.suspects()

    def _within_memory(self, indices: list[int], when: str) -> Tensor:
        """One step's passes, begun anew with smaller micro-batches for as long as memory runs out."""
        state, sums = random_state(self.engine.device), dict(self.train_metrics.sums)

        def attempt() -> Tensor:
            self.policy.zero_grad()
            set_random_state(state)
            self.train_metrics.sums = dict(sums)
            return self._passes(indices)

        def need() -> Need:
            pairs = [self.train_split.pairs[i] for i in indices]
            return need_of(self.engine, pairs, self.budgets.tokens_per_micro_batch)

        return self.budgets.retry("tokens_per_micro_batch", attempt, need, when, together=True)

    def _passes(self, indices: list[int]) -> Tensor:
        """Forward and backward over this process' share of the pairs with these numbers.

        The metrics and the watch see each micro-batch.
        """
        pairs = [self.train_split.pairs[i] for i in indices]
        reference = self.train_split.reference[indices]
        mean_chosen = sum(len(pair.chosen) for pair in pairs) / len(pairs)
        groups = self._cut(pairs)
        coupled = self._coupled_gradients(pairs, reference, mean_chosen) if self.loss_settings.couples_pairs else None
        total = torch.zeros((), device=self.engine.device)
        self.watch = StepWatch([pair.row for pair in pairs])
        for group in groups:
            scores = self.engine.score([pairs[i] for i in group], group)
            batch = pair_logps(scores, to_device(reference[group], self.engine.device), mean_chosen)
            if coupled is None:
                losses = pair_losses(batch, self.loss_settings)
                loss = losses.sum() / len(pairs)
                total += loss.detach()
            else:
                losses, grad_chosen, grad_rejected = (values[group] for values in coupled)
                loss = (grad_chosen * batch.chosen + grad_rejected * batch.rejected).sum()
                total += losses.sum() / len(pairs)
            self.accelerator.backward(loss)
            self.watch.add(group, batch.chosen, batch.rejected, losses, self.policy)
            self.train_metrics.add_pack(scores, batch, self.loss_settings.beta)
        return total

    def _cut(self, pairs: list[TokenPair]) -> list[list[int]]:
        """Micro-batches of this process' share of a global batch; positions in `pairs`."""
        mine = parallel.share([packed_tokens(pair) for pair in pairs])
        groups = self.engine.cut([pairs[i] for i in mine], self.budgets.tokens_per_micro_batch)
        return [[mine[i] for i in group] for group in groups]

    def _coupled_gradients(
        self, pairs: list[TokenPair], reference: Tensor, mean_chosen: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses that sort the whole batch: their gradient for each log-probability, from a pass without gradients."""
        with torch.random.fork_rng(devices=[self.engine.device] if self.engine.device.type == "cuda" else []):
            scores = self.budgets.score_all(self.engine, pairs, f"step {self.state.global_step + 1}")
        batch = pair_logps(scores_on(scores, self.engine.device), reference, mean_chosen)
        return logp_gradients(batch, self.loss_settings)

    def run_longest(self) -> None:
        """Forward and backward over the longest micro-batch to come; nothing of it stays but a smaller budget.

        Raises:
            MemoryShortageError: not even a single pair fits.
        """
        budget = 0
        with self._as_if_nothing_happened():
            while budget != self.budgets.tokens_per_micro_batch:
                # after a smaller budget, another micro-batch may be the longest
                budget = self.budgets.tokens_per_micro_batch
                self.longest = max(self._micro_batches(), key=self._tokens)
                self._within_memory(self.longest, "the longest micro-batch, tried first")

    def describe_longest(self) -> str:
        """The longest micro-batch in words, once it was run."""
        return f"the longest micro-batch ({self._tokens(self.longest):,} tokens, {len(self.longest)} pairs)"

    def peak_of_longest(self) -> int | None:
        """Peak bytes of tensors on the card in the longest micro-batch, None where it does not fit."""
        with self._as_if_nothing_happened():
            return peak_on_card(lambda: self._passes(self.longest))

    def peak_of_scoring(self) -> int | None:
        """The same in the longest pass of an evaluation."""
        budget = self.budgets.tokens_without_grad
        groups = [[self.heldout.pairs[i] for i in group] for group in self.engine.cut(self.heldout.pairs, budget)]
        longest = max(groups, key=lambda group: tokens_of(self.engine, group))
        return peak_on_card(lambda: self.engine.score_all(longest, budget))

    def bytes_to_come(self) -> int:
        """What a step will hold on the card beyond the passes: optimizer state, and gradients of earlier passes."""
        weights, optim = self.trained_weights, str(getattr(self.args.optim, "value", self.args.optim))
        state = 0.0 if is_paged(optim) else optimizer_bytes(optim, weights) + step_temporaries(optim, weights)
        return int(state) + LORA * weights

    @property
    def trained_weights(self) -> int:
        """Weights of the adapter."""
        return sum(parameter.numel() for parameter in self.policy.parameters() if parameter.requires_grad)

    @contextlib.contextmanager
    def _as_if_nothing_happened(self) -> Iterator[None]:
        """Passes inside leave no gradient, no metric, and the random numbers where they were."""
        state, sums = random_state(self.engine.device), dict(self.train_metrics.sums)
        self.policy.train()
        try:
            yield
        finally:
            self.policy.zero_grad()
            set_random_state(state)
            self.train_metrics.sums = sums

    def _tokens(self, indices: list[int]) -> int:
        return tokens_of(self.engine, [self.train_split.pairs[i] for i in indices])

    def _micro_batches(self) -> Iterator[list[int]]:
        """The numbers of the pairs of every micro-batch that is still to come."""
        n, size = len(self.train_split.pairs), self.args.per_device_train_batch_size
        per_epoch = steps_per_epoch(n, size)
        for step in range(self.state.global_step, self.total_steps()):
            epoch, place = divmod(step, per_epoch)
            order = permutation(n, self.args.seed, epoch)[place * size : (place + 1) * size]
            groups = self._cut([self.train_split.pairs[i] for i in order])
            yield from ([order[i] for i in group] for group in groups)

    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        args = self.args
        limit = args.max_steps if args.max_steps > 0 else None
        n = len(self.train_split.pairs)
        return steps_for(n, args.per_device_train_batch_size, args.num_train_epochs, limit)

    # ----------------------------------------------------------------------------------------------- logs, evaluation

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of the steps since the last log to a training log."""
        if "loss" in logs:
            logs |= self.train_metrics.read() | self.scaler_metrics(logs)
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the held-out pairs (and texts) and log TRL's metrics with the prefix."""
        scores = self._score_together(self.heldout.pairs, "the evaluation")
        if not torch.isfinite(scores.logps).all():
            finite = torch.isfinite(scores.logps).view(2, -1).all(0).tolist()
            bad = [pair.row for pair, fine in zip(self.heldout.pairs, finite, strict=True) if not fine]
            raise TrainingError(
                f"step {self.state.global_step}: the log-probabilities of {len(bad)} of {len(finite)} held-out pairs "
                f"are not finite (held-out {name_rows(bad)})",
                "look at these rows; the last checkpoint is intact",
            )
        mean_chosen = sum(len(pair.chosen) for pair in self.heldout.pairs) / len(self.heldout.pairs)
        batch = pair_logps(scores, self.heldout.reference, mean_chosen)
        self.heldout_logps[self.state.global_step] = torch.stack([batch.chosen, batch.rejected], 1).cpu()
        metrics = Metrics()
        metrics.add_pack(scores, batch, self.loss_settings.beta)
        values = {"loss": float(pair_losses(batch, self.loss_settings).mean()), **metrics.read()}
        if self.text:
            text = self._score_together(text_pairs(self.text), "the evaluation of held-out texts")
            values["text_nll"] = nll(text)
        logs = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    def _score_together(self, pairs: Sequence[TokenPair], when: str) -> PackScores:
        """Scores of all pairs without gradients, of which each process computes a share."""
        mine = parallel.share([packed_tokens(pair) for pair in pairs])
        scores = self.budgets.score_all(self.engine, [pairs[i] for i in mine], when)
        return joined(parallel.gathered((mine, scores)))


class EpochCallback(TrainerCallback):
    """Tells the sampler which epoch begins, counted from the steps done, so that a resume sees the same order."""

    def __init__(self, trainer: DpoTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch."""
        per_epoch = steps_per_epoch(len(self.trainer.train_split.pairs), args.per_device_train_batch_size)
        self.trainer.sampler.epoch = state.global_step // per_epoch


def peak_on_card(run: Callable[[], object]) -> int | None:
    """Peak bytes of tensors on the card while something runs, all that was there before included; None where it does
    not fit."""
    torch.cuda.reset_peak_memory_stats()
    try:
        run()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    else:
        fits = True
    if not fits:
        # only now are the failed pass's activations free: the exception held them
        clear_device_cache(garbage_collection=True)
        return None
    return torch.cuda.max_memory_allocated()


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Where the random numbers of a step begin: the CPU's and the GPU's."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    """Go back to what `random_state` gave."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])


def pair_logps(scores: PackScores, reference: Tensor, mean_chosen_tokens: float) -> PairLogps:
    """The 2n sequence scores of n pairs and the reference's (n, 2), as the losses take them."""
    chosen, rejected = scores.logps.chunk(2)
    chosen_tokens, rejected_tokens = scores.tokens.chunk(2)
    reference = reference.to(chosen.device, chosen.dtype)
    return PairLogps(
        chosen, rejected, reference[:, 0], reference[:, 1], chosen_tokens, rejected_tokens, mean_chosen_tokens
    )


def joined(parts: list[tuple[list[int], PackScores]]) -> PackScores:
    """Scores of pairs from scores of some of them each.

    Args:
        parts: positions of pairs, and their scores on the CPU.
    """
    order = [i for positions, _ in parts for i in positions]
    if len(parts) == 1:
        return parts[0][1]
    place = torch.tensor(order).argsort()
    names = [name.name for name in fields(PackScores)]
    columns = [torch.cat([getattr(scores, name).view(2, -1) for _, scores in parts], 1)[:, place] for name in names]
    return PackScores(*(column.reshape(-1) for column in columns))


def scores_on(scores: PackScores, device: torch.device) -> PackScores:
    """The same scores on a device."""
    parts = (scores.logps, scores.tokens, scores.logits, scores.entropy, scores.top1)
    return PackScores(*(part.to(device) for part in parts))
