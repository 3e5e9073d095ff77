"""The recipe: how a run trains, from the order of the pairs to the last checkpoint, from top to bottom.

One optimizer step sees one global batch. How its pairs are cut into micro-batches is a question of memory and never
changes the mathematics. Random numbers (dropout) of a step come from the seed and the step alone, so a step that is
begun anew, and a run that is resumed, draw the same ones.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qdpo.config.schema import TrainSection
from qdpo.config.steps import steps_per_epoch
from qdpo.data.pairs import TokenPair
from qdpo.engine.engine import Engine, nll, text_pairs
from qdpo.engine.layout import packed_tokens, padded_tokens
from qdpo.engine.logps import PackScores
from qdpo.engine.losses import PairLogps, logp_gradients, pair_losses
from qdpo.engine.optimizer import gradient_norm, make_optimizer, update
from qdpo.engine.transfer import to_device
from qdpo.engine.used import Products, Used, check_used
from qdpo.errors import MemoryShortageError, TrainingError
from qdpo.hardware import is_out_of_memory
from qdpo.progress import waiting
from qdpo.run import checkpoint
from qdpo.run.folder import CHECKPOINTS
from qdpo.training import parallel
from qdpo.training.early_stop import EarlyStop
from qdpo.training.guards import SKIPS_IN_A_ROW, StepWatch, name_rows, not_finite
from qdpo.training.invariants import Check, check_adapter_learned
from qdpo.training.log import Log
from qdpo.training.metrics import Metrics
from qdpo.training.order import permutation
from qdpo.training.out_of_memory import Budgets, need_of
from qdpo.training.signals import Stop
from qdpo.training.stages.disk import checkpoint_bytes
from qdpo.training.stages.state import RunState, total_steps
from qdpo.training.verdict_line import say_verdict

if TYPE_CHECKING:
    from peft import PeftModel

    from qdpo.training.mirror import Mirror
    from qdpo.training.samples import Samples

BEST = {"accuracy": "eval_rewards/accuracies", "loss": "eval_loss"}
"""What `train.load_best` compares."""


@dataclass(frozen=True)
class Split:
    """Pairs and what the reference says of them.

    Attributes:
        pairs: n token pairs.
        reference: (n, 2) log-probabilities under the reference, chosen and rejected, in nats.
    """

    pairs: Sequence[TokenPair]
    reference: Tensor


class Recipe:
    """Trains an adapter on preference pairs.

    Args:
        run: its configuration, directory, device and record.
        policy: the model with its adapter.
        engine: runs the policy's model; the one that was probed and checked, so that what trains is what was tested.
        train: what to learn from.
        heldout: what to evaluate on.
        text: held-out plain texts as ids, possibly none.
        budgets: tokens of a pass.
        samples: answers a few prompts at every evaluation; None for none.
        stop: says when a signal has asked the run to stop.
        mirror: is told of every checkpoint; None for none.

    Attributes:
        progress: where the run stands.
        steps: optimizer steps of the whole run; an early stop lowers it.
        optim: which AdamW, see `train.optim`.
        scaler: of the loss, in float16 on a GPU; None elsewhere.
        watch: what was seen in the micro-batches of the step at hand.
        heldout_logps: (n, 2) log-probabilities of the held-out pairs, by the step of the evaluation.
    """

    def __init__(
        self,
        run: RunState,
        policy: PeftModel,
        engine: Engine,
        *,
        train: Split,
        heldout: Split,
        text: list[list[int]],
        budgets: Budgets,
        samples: Samples | None = None,
        stop: Stop | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        self.run, self.config, self.device = run, run.config, engine.device
        self.policy, self.engine = policy, engine
        self.train_split, self.heldout, self.text = train, heldout, text
        self.loss, self.budgets = run.config.loss, budgets
        self.samples, self.stop, self.mirror = samples, stop or Stop(), mirror
        settings = run.config.train
        self.trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        self.optim: str = "adamw_torch" if settings.optim == "auto" else settings.optim
        self.optimizer: torch.optim.Optimizer | None = None
        half = run.device.kind == "cuda" and run.record.dtype.compute == "float16"
        self.scaler = torch.amp.GradScaler("cuda") if half else None
        self.steps = total_steps(run.config, len(train.pairs))
        self.rate = learning_rates(settings, self.steps)
        self.progress = checkpoint.Progress()
        self.early_stop = EarlyStop.of(settings, run.folder)
        self.log = Log(run, self.steps)
        self.metrics = Metrics()
        self.losses, self.logged = torch.zeros((), device=engine.device), 0
        self.norm: Tensor | None = None
        self.watch = StepWatch([])
        self.used: Used | None = None
        self.learned = False
        self.saved_at = time.monotonic()
        self.heldout_logps: dict[int, Tensor] = {}

    # --------------------------------------------------------------------------------------------------------- the loop

    def train(self) -> None:
        """Train to the last step, or to the one after which a signal ends the run; go on from its checkpoint if it has
        one.

        Raises:
            TrainingError: something is not finite, or a check of the first steps fails.
            MemoryShortageError: not even a single pair fits.
        """
        resume, step = self.run.resume, 0
        if resume is not None:
            self.progress = checkpoint.read_progress(resume)
            step = self.logged = self.progress.step
            checkpoint.read_adapter(self.policy, resume)
            if step >= self.steps or (self.early_stop is not None and self.early_stop.ended(step)):
                return
        self.optimizer = make_optimizer(self.config.train, self.optim, self.trained)
        if resume is not None:
            checkpoint.read_optimizer(self.optimizer, resume)
            checkpoint.read_scaler(self.scaler, resume)
        with contextlib.closing(self.log):
            self.log.begin(step, self.progress.tokens_seen)
            if self.samples is not None:
                self.samples.begin(step)
            try:
                if resume is None:
                    self.evaluate()
                while self.progress.step < self.steps:
                    # from here on there is something to lose: a signal ends the step first
                    self.stop.patient = True
                    self.step()
                    if not self.after_step():
                        break
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                first, second = self.more_memory()
                raise MemoryShortageError(
                    f"out of memory in step {self.progress.step + 1}; what was saved is intact",
                    f"try --set {first}, or --set {second}",
                ) from error

    def step(self) -> None:
        """One optimizer step: forward and backward over the global batch, clipping, update."""
        assert self.optimizer is not None
        done = self.progress.step
        rate = self.rate(done - self.progress.skips.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.policy.train()
        batch = self.batch(done)
        self.losses += self.gradients(batch)
        self.update()
        self.progress.step += 1
        self.progress.tokens_seen += sum(padded_tokens(self.train_split.pairs[i]) for i in batch)
        self._check_first_steps(rate)

    def batch(self, step: int) -> list[int]:
        """The numbers of the pairs of one step, counted from 0: a permutation per epoch, the rest of which is left
        out."""
        n, size = len(self.train_split.pairs), self.config.train.pairs_per_step
        epoch, place = divmod(step, steps_per_epoch(n, size))
        return permutation(n, self.config.train.seed, epoch)[place * size : (place + 1) * size]

    def gradients(self, batch: Sequence[int]) -> Tensor:
        """The gradients of one global batch, over all processes, in the adapter; returns its loss, a scalar.

        Raises:
            TrainingError: a log-probability or loss is not finite, or what is fused did not run so.
        """
        with self._counting_the_first():
            loss = self.forward_backward(batch)
        with parallel.failing_together():
            self.watch.check(self.progress.step + 1, self.policy)
        parallel.sum_gradients(self.trained)
        return parallel.summed(loss)

    def forward_backward(self, batch: Sequence[int], when: str = "") -> Tensor:
        """Forward and backward over one global batch; with smaller micro-batches, from the beginning, when memory runs
        out.

        Returns:
            This process' part of the step's loss, a scalar on the device.

        Raises:
            MemoryShortageError: not even a single pair fits.
        """
        pairs, sums = [self.train_split.pairs[i] for i in batch], dict(self.metrics.sums)

        def attempt() -> Tensor:
            self.policy.zero_grad()
            self.metrics.sums = dict(sums)
            torch.manual_seed(parallel.seed(self.config.train.seed, self.progress.step))
            return self.passes(batch)

        return self.budgets.retry(
            "tokens_per_micro_batch",
            attempt,
            lambda: need_of(self.engine, pairs, self.budgets.tokens_per_micro_batch),
            when or f"step {self.progress.step + 1}",
            together=True,
        )

    def passes(self, batch: Sequence[int]) -> Tensor:
        """This process' micro-batches: scores, loss, backward."""
        numbers = list(batch)
        pairs, reference = [self.train_split.pairs[i] for i in numbers], self.train_split.reference[numbers]
        mean_chosen = sum(len(pair.chosen) for pair in pairs) / len(pairs)
        coupled = self._coupled(pairs, reference, mean_chosen) if self.loss.couples_pairs else None
        total = torch.zeros((), device=self.device)
        self.watch = watch = StepWatch([pair.row for pair in pairs])

        def loss_of(group: list[int], scores: PackScores) -> Tensor:
            logps = pair_logps(scores, to_device(reference[group], self.device), mean_chosen)
            if coupled is None:
                losses = pair_losses(logps, self.loss)
                loss = losses.sum() / len(pairs)
                total.add_(loss.detach())
            else:
                losses, grad_chosen, grad_rejected = (values[group] for values in coupled)
                loss = (grad_chosen * logps.chosen + grad_rejected * logps.rejected).sum()
                total.add_(losses.sum() / len(pairs))
            watch.saw(group, logps.chosen, logps.rejected, losses)
            self.metrics.add_pack(scores, logps, self.loss.beta)
            return loss

        groups, done = self.cut(pairs), 0

        def backward(loss: Tensor) -> None:
            nonlocal done
            self.backward(loss)
            done += 1
            self.log.part(self.progress.step, done / len(groups))

        self.engine.step(pairs, groups, loss_of, backward)
        return total

    def backward(self, loss: Tensor) -> None:
        """Back-propagate the loss of one micro-batch."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        self.watch.saw_gradients(self.policy)

    def cut(self, pairs: Sequence[TokenPair]) -> list[list[int]]:
        """Micro-batches of this process' share of a global batch; positions in `pairs`."""
        mine = parallel.share([packed_tokens(pair) for pair in pairs])
        groups = self.engine.cut([pairs[i] for i in mine], self.budgets.tokens_per_micro_batch)
        return [[mine[i] for i in group] for group in groups]

    def _coupled(self, pairs: list[TokenPair], reference: Tensor, mean_chosen: float) -> tuple[Tensor, Tensor, Tensor]:
        """Losses that sort the whole batch: their gradient for each log-probability, from a pass without gradients."""
        scores = scores_on(self.budgets.score_all(self.engine, pairs, f"step {self.progress.step + 1}"), self.device)
        return logp_gradients(pair_logps(scores, reference, mean_chosen), self.loss)

    def update(self) -> None:
        """Clip the gradients and let the optimizer use them; in float16, leave out a step whose gradients overflowed.

        Raises:
            TrainingError: gradients or weights are not finite, or too many steps in a row had to be left out.
        """
        assert self.optimizer is not None
        step, skips = self.progress.step + 1, self.progress.skips
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.trained)
        if self.scaler is None and not torch.isfinite(norm):
            raise not_finite("the gradients", step, self.watch.suspects(), self.policy)
        skipped = update(self.optimizer, self.scaler, self.trained, norm, self.config.train.max_grad_norm)
        self.norm = None if skipped else norm
        skips.count(skipped)
        if skips.in_a_row >= SKIPS_IN_A_ROW:
            raise TrainingError(
                f"the gradients of the last {SKIPS_IN_A_ROW} steps overflowed in float16 and were all skipped "
                f"(step {step}, {name_rows(self.watch.suspects())})",
                "set model.dtype=bfloat16 (compute capability 8.0 and up) or float32, or look at these rows; "
                "the last checkpoint is intact",
            )
        if not skipped and not torch.isfinite(nn.utils.get_total_norm([p.detach() for p in self.trained])):
            raise not_finite("the weights after the update", step, sorted(self.watch.rows), self.policy)

    def after_step(self) -> bool:
        """Log, evaluate and save what is due; at the last step all of it. False when the run is to stop here."""
        step, train = self.progress.step, self.config.train
        last = step >= self.steps
        evaluating = last or step % train.eval_every == 0
        minutes = time.monotonic() - self.saved_at >= 60 * train.save_minutes
        saving = last or minutes or step % train.save_every == 0
        self.log.moved(step, evaluating=evaluating)
        if last or step == 1 or step % train.log_every == 0:
            self.log_training()
        if evaluating:
            saving |= self._is_best(self.evaluate())
            if not last and self.early_stop is not None and self.early_stop.ends(step, self.steps):
                self.steps, saving = step, True
        # processes that train together stop after the same step
        asked = parallel.agreed(self.stop.signal)
        self.stop.signal = self.stop.signal if asked is None else asked
        if saving or asked is not None:
            self.save()
        # alone, a signal that came while it was saved counts too
        return asked is None and (self.stop.signal is None or parallel.world() > 1)

    # ------------------------------------------------------------------------------------------ metrics and evaluation

    def log_training(self) -> None:
        """The means of the steps since the last log."""
        assert self.optimizer is not None
        values: dict[str, float] = {"loss": self.losses.item() / (self.progress.step - self.logged)}
        if self.norm is not None:
            values["grad_norm"] = self.norm.item()
        values["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        values |= self.step_metrics()
        if self.scaler is not None:
            values |= {"skipped_steps": self.progress.skips.total, "loss_scale": self.scaler.get_scale()}
        self.losses, self.logged = torch.zeros_like(self.losses), self.progress.step
        self.log.training(self.progress.step, values | {"epoch": self.epoch}, self.progress.tokens_seen)

    def step_metrics(self) -> dict[str, float]:
        """TRL's metrics of the steps since the last call."""
        return self.metrics.read()

    def evaluate(self) -> dict[str, float]:
        """Score the held-out pairs, log the metrics with the prefix `eval_`, show answers and what the curves mean."""
        step = self.progress.step
        values = {f"eval_{name}": value for name, value in self.score_heldout().items()} | {"epoch": self.epoch}
        self.log.heldout(step, values)
        if self.samples is not None and parallel.is_first():
            self.samples.show(self.policy, step)
        if step and parallel.is_first():
            say_verdict(self.run.folder, step)
        self.log.restart_clock(self.progress.tokens_seen)
        return values

    def score_heldout(self) -> dict[str, float]:
        """TRL's metrics of the held-out pairs, and the loss of held-out texts.

        Raises:
            TrainingError: a log-probability is not finite.
        """
        pairs = self.heldout.pairs
        scores = self._score_together(pairs, "the evaluation")
        if not torch.isfinite(scores.logps).all():
            finite = torch.isfinite(scores.logps).view(2, -1).all(0).tolist()
            bad = [pair.row for pair, fine in zip(pairs, finite, strict=True) if not fine]
            raise TrainingError(
                f"step {self.progress.step}: the log-probabilities of {len(bad)} of {len(finite)} held-out pairs "
                f"are not finite (held-out {name_rows(bad)})",
                "look at these rows; the last checkpoint is intact",
            )
        logps = pair_logps(scores, self.heldout.reference, sum(len(pair.chosen) for pair in pairs) / len(pairs))
        self.heldout_logps[self.progress.step] = torch.stack([logps.chosen, logps.rejected], 1).cpu()
        metrics = Metrics()
        metrics.add_pack(scores, logps, self.loss.beta)
        values = {"loss": float(pair_losses(logps, self.loss).mean()), **metrics.read()}
        if self.text:
            values["text_nll"] = nll(self._score_together(text_pairs(self.text), "the evaluation of held-out texts"))
        return values

    def _score_together(self, pairs: Sequence[TokenPair], when: str) -> PackScores:
        """Scores of all pairs without gradients, of which each process computes a share."""
        mine = parallel.share([packed_tokens(pair) for pair in pairs])
        scores = self.budgets.score_all(self.engine, [pairs[i] for i in mine], when)
        return joined(parallel.gathered((mine, scores)))

    def _is_best(self, values: dict[str, float]) -> bool:
        """Whether an evaluation is the best so far, by `train.load_best`; it is remembered then."""
        by, best = self.config.train.load_best, self.progress.best_value
        if by == "none":
            return False
        value = values[BEST[by]]
        if best is not None and not (value < best if by == "loss" else value > best):
            return False
        self.progress.best_value, self.progress.best_step = value, self.progress.step
        return True

    # ----------------------------------------------------------------------------------------------- checkpoint, checks

    def save(self) -> None:
        """Write a checkpoint, whole or not at all, and note its step in run.json."""
        assert self.optimizer is not None
        if parallel.is_first():
            with waiting(f"saving step {self.progress.step}"):
                checkpoint.save(
                    self.run.folder / CHECKPOINTS,
                    self.progress,
                    self.policy,
                    self.optimizer,
                    self.scaler,
                    run_id=str(self.run.record.id),
                    base_name=self.config.model.name,
                    keep=self.config.train.keep,
                    needed=checkpoint_bytes([weight.numel() for weight in self.trained], self.optim),
                )
        self.run.save(saved_step=self.progress.step)
        if self.mirror is not None:
            self.mirror.update()
        self.saved_at = time.monotonic()

    def more_memory(self) -> tuple[str, ...]:
        """Settings to try when memory runs out outside of the passes, which can be made smaller."""
        return "train.optim=paged_adamw_8bit", "lora.r=8"

    @property
    def epoch(self) -> float:
        """Passes over the training pairs so far."""
        if not self.progress.step:
            return 0
        each = steps_per_epoch(len(self.train_split.pairs), self.config.train.pairs_per_step)
        epoch, place = divmod(self.progress.step - 1, each)
        return epoch + (place + 1) / each

    @contextlib.contextmanager
    def _counting_the_first(self) -> Any:
        """The first step is counted: which functions ran, in which types."""
        if self.used is not None:
            yield
            return
        self.engine.fusion.calls.clear()
        with Products() as products:
            yield
        self.used = Used.of(self.engine.fusion, products)
        check_used(self.engine.model, self.engine.fusion, self.used)
        self.run.checks.append(Check("the first step", self.used.text()).say())
        self.run.save(engine=self.run.record.engine.model_copy(update={"used": self.used.as_dict()}))

    def _check_first_steps(self, rate: float) -> None:
        """After the first step that could change anything, every adapter must have changed; warmup starts at 0."""
        if not self.learned and rate and not self.progress.skips.in_a_row:
            self.learned = True
            self.run.checks.append(check_adapter_learned(self.policy, self.progress.step).say())


def learning_rates(train: TrainSection, steps: int) -> Callable[[int], float]:
    """The learning rate by the optimizer steps done: transformers' schedules of the same names."""
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=train.learning_rate)
    warmup = train.warmup_steps or math.ceil(steps * train.warmup_ratio)
    schedule: Any = get_scheduler(train.lr_scheduler_type, optimizer, warmup, steps)
    shape = schedule.lr_lambdas[0]
    return lambda done: train.learning_rate * shape(done)


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
