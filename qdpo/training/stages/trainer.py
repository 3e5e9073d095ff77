"""Fourth stage: the trainer with its callbacks and the display."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qdpo import console
from qdpo.training import trackers
from qdpo.training.stages.state import Run

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase, TrainerCallback

    from qdpo.config.loss import LossSettings
    from qdpo.data.prepare import Prepared
    from qdpo.engine.engine import Engine
    from qdpo.training.mirror import Mirror
    from qdpo.training.out_of_memory import Budgets
    from qdpo.training.signals import Stop
    from qdpo.training.terminal import TerminalCallback
    from qdpo.training.trainer import DpoTrainer, Split
    from qdpo.training.trl_engine import TrlTrainer


def training_arguments(run: Run) -> dict[str, Any]:
    """The configuration in the terms of transformers' TrainingArguments."""
    config, train = run.config, run.config.train
    trackers.set_folder(run.folder)
    half = run.record["dtype"]["compute"] if run.device.kind == "cuda" else None
    best = {"none": None, "accuracy": "eval_rewards/accuracies", "loss": "eval_loss"}[train.load_best]
    return {
        "output_dir": str(run.folder / "checkpoints"),
        "per_device_train_batch_size": train.pairs_per_step,
        "gradient_accumulation_steps": 1,
        "max_steps": train.max_steps or -1,
        "num_train_epochs": train.num_train_epochs,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.lr_scheduler_type,
        # transformers reads a warmup below 1 as a share of all steps
        "warmup_steps": train.warmup_steps or train.warmup_ratio,
        # `use_memory` chooses it, once the longest micro-batch is known
        "optim": "adamw_torch" if train.optim == "auto" else train.optim,
        "adam_beta1": train.adam_beta1,
        "adam_beta2": train.adam_beta2,
        "adam_epsilon": train.adam_epsilon,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        # set_up_engine has chosen the layers; transformers would checkpoint all of them
        "gradient_checkpointing": False,
        "seed": train.seed,
        "logging_steps": train.log_every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps",
        "eval_steps": train.eval_every,
        "eval_on_start": run.resume is None,
        "save_strategy": "steps",
        "save_steps": train.save_every,
        "metric_for_best_model": best,
        "greater_is_better": train.load_best == "accuracy" if best else None,
        "bf16": half == "bfloat16",
        "fp16": half == "float16",
        "use_cpu": run.device.kind == "cpu",
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "report_to": list(train.report_to) or "none",
        "run_name": config.name,
    }


def build_trainer(
    run: Run,
    policy: PeftModel,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    train: Split,
    heldout: Split,
    data: Prepared,
    loss: LossSettings,
    budgets: Budgets,
) -> tuple[DpoTrainer, TerminalCallback]:
    """The trainer with its callbacks, and the display, which must be closed whatever happens."""
    from transformers import TrainingArguments

    from qdpo.training.stages.used import UsedCallback
    from qdpo.training.trainer import DpoTrainer, EpochCallback

    config = run.config
    trainer = DpoTrainer(
        policy,
        TrainingArguments(**training_arguments(run)),
        engine,
        train=train,
        heldout=heldout,
        text=data.text,
        loss=loss,
        budgets=budgets,
        # a CPU has no memory of its own to run out of, and there the pass would only take time
        try_longest=run.device.kind == "cuda",
        base_name=config.model.name,
        keep=config.train.keep,
        callbacks=first_callbacks(run, tokenizer, data),
    )
    trainer.run_id = run.record["id"]
    trainer.add_callback(EpochCallback(trainer))
    trainer.add_callback(UsedCallback(trainer, run))
    return trainer, add_callbacks(run, trainer)


def build_trl_trainer(
    run: Run, policy: PeftModel, tokenizer: PreTrainedTokenizerBase, data: Prepared
) -> tuple[TrlTrainer, TerminalCallback]:
    """Stock TRL's trainer with the same callbacks, and the display."""
    from qdpo.training.trl_engine import TrlTrainer

    callbacks = first_callbacks(run, tokenizer, data)
    trainer = TrlTrainer(policy, training_arguments(run), run.config, data, tokenizer, callbacks)
    trainer.run_id = run.record["id"]
    return trainer, add_callbacks(run, trainer)


def first_callbacks(run: Run, tokenizer: PreTrainedTokenizerBase, data: Prepared) -> list[TrainerCallback]:
    """The callbacks that decide about the step which was made, before any that looks at their decisions, and samples.

    Samples come before whatever measures time or says that training goes on.
    """
    import torch

    from qdpo.hardware import mixed_precision
    from qdpo.training.callbacks import ScheduleCallback
    from qdpo.training.checkpointing import SavedStep
    from qdpo.training.invariants import FirstStepCallback
    from qdpo.training.samples import FILE, SamplesCallback, choose_prompts

    samples = SamplesCallback(
        run.folder / FILE,
        choose_prompts(run.config, tokenizer, data.template, data.heldout),
        tokenizer,
        data.template.end_of_turn or frozenset({int(tokenizer.eos_token_id)}),
        run.config.samples.max_new_tokens,
        mixed_precision(run.device, getattr(torch, run.record["dtype"]["compute"])),
    )
    return [
        ScheduleCallback(run.config.train.save_minutes),
        FirstStepCallback(run.checks),
        SavedStep(run.save),
        samples,
    ]


def add_callbacks(run: Run, trainer: DpoTrainer | TrlTrainer) -> TerminalCallback:
    """Add what records, ends and shows a run; the display is returned and must be closed whatever happens."""
    from transformers import PrinterCallback

    from qdpo.training.callbacks import MetricsFile, SaveBestCallback
    from qdpo.training.early_stop import EarlyStopCallback
    from qdpo.training.terminal import TerminalCallback
    from qdpo.training.verdict_line import VerdictCallback

    config = run.config
    taken, wanted = str(getattr(trainer.args.optim, "value", trainer.args.optim)), config.train.optim
    if wanted not in ("auto", taken):
        console.note(f"optim {wanted}: backend {config.backend} takes {taken} on this {run.device.kind}")
    elif run.device.kind == "cpu" and wanted.startswith("paged"):
        console.note(f"optim {wanted}: paging needs CUDA, using the same optimizer of bitsandbytes unpaged")
    trainer.remove_callback(PrinterCallback)
    if config.train.load_best != "none":
        trainer.add_callback(SaveBestCallback())
    trainer.add_callback(MetricsFile(run.folder / "metrics.jsonl", run.device, lambda: trainer.tokens_seen))
    if config.train.early_stop != "none":
        patience = config.train.early_stop_evals
        trainer.add_callback(EarlyStopCallback(run.folder / "metrics.jsonl", config.train.early_stop, patience))
    terminal = TerminalCallback()
    trainer.add_callback(terminal)
    trainer.add_callback(VerdictCallback(run.folder))
    return terminal


def add_outside(trainer: DpoTrainer | TrlTrainer, stop: Stop, mirror: Mirror | None) -> None:
    """Add what listens to signals, after every callback that decides about a step, and what tells the mirror."""
    from qdpo.training.mirror import mirror_callback
    from qdpo.training.signals import stop_callback

    trainer.add_callback(stop_callback(stop))
    if mirror is not None:
        trainer.add_callback(mirror_callback(mirror))
