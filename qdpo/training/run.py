"""One training run, from the resolved configuration to the adapter, the plots and the card.

Reads from top to bottom: set up, data, model, checks, reference, training, result. Each stage leaves its files in the
run directory.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdpo import __version__, console
from qdpo.config.resolve import Resolved
from qdpo.config.schema import RunConfig
from qdpo.config.steps import steps_for
from qdpo.errors import ConfigError, UnavailableError
from qdpo.files import digest_of, staged_folder, sweep, write_json
from qdpo.hardware import GIB, Device, find_device, peak_memory
from qdpo.libraries import quiet_libraries
from qdpo.training import run_folder, trackers

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase, TrainerCallback

    from qdpo.data.prepare import Prepared
    from qdpo.packing.engine import Engine
    from qdpo.training.invariants import Check
    from qdpo.training.losses import LossSettings
    from qdpo.training.terminal import TerminalCallback
    from qdpo.training.trainer import DpoTrainer, Split
    from qdpo.training.trl_engine import TrlTrainer


@dataclass
class Run:
    """What the stages of a run hand on.

    Attributes:
        folder: the run directory.
        config: the resolved configuration.
        device: where it computes.
        resume: the checkpoint to continue from, None to start.
        record: the content of run.json.
        checks: the invariants that held.
    """

    folder: Path
    config: RunConfig
    device: Device
    resume: Path | None = None
    record: dict[str, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    def save(self, **values: Any) -> None:
        """Update run.json."""
        self.record.update(values)
        run_folder.write_record(self.folder, self.record)


def train(resolved: Resolved, folder: Path, *, preset: str, command: str, resume: bool = False) -> Path:
    """Train as configured.

    Args:
        resolved: the configuration.
        folder: the run directory; for a new run, empty or absent.
        preset: what the user called the configuration.
        command: the command line, for the card.
        resume: continue from the newest whole checkpoint in `folder`.

    Returns:
        The run directory.

    Raises:
        QdpoError: of many kinds, each explained.
    """
    begin = time.monotonic()
    config = resolved.config
    loss = loss_settings(config)
    trackers.check_installed(config.train.report_to)
    quiet_libraries()
    device = find_device()
    if config.engine == "trl":
        from qdpo.training import trl_engine

        trl_engine.check(config, device)
    run = Run(folder, config, device)
    if resume:
        reopen(run)
    else:
        run_folder.create(folder, resolved)
        run.record = {
            "schema": 1,
            "qdpo": __version__,
            "name": config.name,
            "preset": preset,
            "created": run_folder.now(),
            "command": command,
            "seed": config.train.seed,
        }
    console.say(f"run directory: {folder}")
    run.save(state="running", versions=run_folder.versions(), hardware=describe(device), result=None)

    tokenizer, data = prepare_data(run)
    policy, engine = load_policy(run)
    run_checks(run, engine, policy, tokenizer, data, loss)
    trainer: DpoTrainer | TrlTrainer
    if config.engine == "trl":
        trainer, terminal = build_trl_trainer(run, policy, tokenizer, data)
    else:
        train_split, heldout = reference_pass(run, engine, policy, data)
        trainer, terminal = build_trainer(run, policy, train_split, heldout, data, loss)
    with contextlib.closing(terminal):
        trainer.train(resume_from_checkpoint=str(run.resume) if run.resume else None)
    finish(run, trainer, policy, tokenizer, seconds=time.monotonic() - begin)
    return folder


def loss_settings(config: RunConfig) -> LossSettings:
    """The loss and its constants, checked together.

    Raises:
        ConfigError: a combination that has no meaning.
    """
    from qdpo.training.losses import LossSettings

    section = config.loss.model_dump()
    section["loss_type"] = tuple(section["loss_type"])
    section["loss_weights"] = tuple(section["loss_weights"]) if section["loss_weights"] else None
    try:
        return LossSettings(**section)
    except ValueError as error:
        raise ConfigError(f"loss: {error}") from error


def describe(device: Device) -> dict[str, Any]:
    """The device, for run.json."""
    return {
        "kind": device.kind,
        "name": device.name,
        "capability": list(device.capability) if device.capability else None,
        "memory_bytes": device.memory,
    }


def reopen(run: Run) -> None:
    """Find where an interrupted run stands."""
    from qdpo.training.checkpoint import newest_whole

    sweep(run.folder)
    run.record = run_folder.read_record(run.folder)
    run.resume = newest_whole(run.folder / "checkpoints")
    where = run.resume.name if run.resume else "the beginning: no checkpoint was written yet"
    console.note(f"resuming from {where}")


# ------------------------------------------------------------------------------------------------------------ the data


def prepare_data(run: Run) -> tuple[PreTrainedTokenizerBase, Prepared]:
    """Read, check and tokenise the data, before the base is loaded."""
    from qdpo.data.cache import cache_folder
    from qdpo.data.prepare import fingerprint, prepare
    from qdpo.model.load import load_tokenizer

    config = run.config
    tokenizer = load_tokenizer(config.model)
    data = prepare(config.data, tokenizer, config.train.seed, cache=cache_folder())
    if data.template.source is not None:
        # what is saved beside the adapter, and exported, asks as the run has trained
        tokenizer.chat_template = data.template.source
    for report in (data.train_report, data.heldout_report):
        for line in report.summary():
            console.say(line)
    write_json(
        run.folder / "data_report.json",
        {"train": data.train_report.as_dict(), "heldout": data.heldout_report.as_dict()},
    )
    run.save(
        tokenizer={
            "template_sha256": data.template.sha256,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        data={
            "train": {
                "name": config.data.name,
                "split": config.data.split,
                "fingerprint": fingerprint(data.train),
                "pairs": len(data.train),
            },
            "heldout": {
                "name": config.data.eval_name or config.data.name,
                "split": config.data.eval_split,
                "fingerprint": fingerprint(data.heldout),
                "pairs": len(data.heldout),
            },
        },
    )
    return tokenizer, data


# ----------------------------------------------------------------------------------------------------------- the model


def load_policy(run: Run) -> tuple[PeftModel, Engine]:
    """Load the base, attach the adapter, find the layout that suits them."""
    from qdpo.model.load import NF4_BLOCKSIZE, load_base, read_license, weights_sha256
    from qdpo.model.lora import attach, disable_dropout, lora_layers, trainable

    config = run.config
    base = load_base(config.model, run.device)
    console.note(f"computing in {_short(base.dtype)} on {run.device.name}: {base.dtype_reason}")
    parameters = parameter_count(base.model)
    policy = attach(base.model, config.lora, config.train.seed, config.model.adapter)
    if config.train.disable_dropout:
        disable_dropout(policy)
    run.save(
        dtype={"compute": _short(base.dtype), "reason": base.dtype_reason},
        base={
            "name": config.model.name,
            "folder": str(base.source.folder),
            "revision": base.source.revision,
            "architecture": (base.model.config.architectures or [type(base.model).__name__])[0],
            "parameters": parameters,
            "license": read_license(base.source.folder),
            "weights_sha256": weights_sha256(base.source),
        },
        quantization={
            "method": config.model.quantization,
            "double_quant": config.model.double_quant,
            "blocksize": NF4_BLOCKSIZE,
            "load_dtype": _short(base.load_dtype),
            "modules": base.quantized,
        },
        adapter={
            "modules": len(lora_layers(policy)),
            "trainable_parameters": sum(p.numel() for p in trainable(policy).values()),
        },
    )
    return policy, set_up_engine(run, policy, base.dtype)


def set_up_engine(run: Run, policy: PeftModel, dtype: torch.dtype) -> Engine:
    """Probe the loaded model, fuse what may be fused, checkpoint what is asked, and compare gradients.

    Raises:
        UnavailableError: only stock TRL can train this model.
    """
    from qdpo.packing.engine import Engine
    from qdpo.packing.fuse import fuse
    from qdpo.packing.gradient_check import check_gradients
    from qdpo.packing.probe import decide
    from qdpo.packing.recompute import checkpoint_layers, decoder_layers
    from qdpo.training.invariants import Check

    packing = run.config.packing
    model: Any = policy.get_base_model()
    own = model.config._attn_implementation
    autocast = mixed_precision(run.device, dtype)
    if run.config.engine == "trl":
        # TRL runs the model as it is, with its own checkpointing; this engine only serves the checks before the start
        run.save(engine={"way": "trl", "attention": own})
        return Engine(model, run.device.torch, autocast, "unshared")
    decision = decide(model, run.device.torch, autocast)
    if decision.way == "trl":
        raise UnavailableError(f"the packed engine cannot train this model: {decision.reason}", "set engine: trl")
    if decision.way != "packed":
        console.note(f"engine: {decision.reason}")
    engine = Engine(model, run.device.torch, autocast, decision.way)
    fusion = fuse(model, linear=packing.fused_lora, mlp=packing.fused_mlp, norm=packing.fused_norm)
    wanted = packing.checkpoint_layers if run.config.train.gradient_checkpointing else 0
    checkpointed = checkpoint_layers(model, wanted)
    gap = check_gradients(engine, fusion, own)
    layers = f"{checkpointed} of {len(decoder_layers(model))} layers checkpointed"
    run.checks.append(Check(f"engine {decision.way}", f"{decision.reason}; {fusion.describe()} fused; {layers}").say())
    run.save(
        engine={
            **decision.as_dict(),
            "attention": own,
            "fused": dict(fusion.counts),
            "checkpointed_layers": checkpointed,
            "gradient_difference": gap,
        }
    )
    return engine


def mixed_precision(device: Device, dtype: torch.dtype) -> Callable[[], AbstractContextManager[object]]:
    """The context of a forward pass: autocast on a GPU in half precision, as the trainer has it, else none."""
    import torch

    if device.kind == "cuda" and dtype in (torch.bfloat16, torch.float16):
        return partial(torch.autocast, "cuda", dtype)
    return contextlib.nullcontext


def parameter_count(model: Any) -> int:
    """Parameters of a model, those in 4 bits counted in full."""
    return sum(
        math.prod(state.shape) if (state := getattr(p, "quant_state", None)) is not None else p.numel()
        for p in model.parameters()
    )


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def run_checks(
    run: Run,
    engine: Engine,
    policy: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Prepared,
    loss: LossSettings,
) -> None:
    """Assert what must hold before the first step; each check is one green line."""
    from qdpo.data.tokenise import Tokeniser
    from qdpo.training import invariants

    limits = run.config.data
    tokeniser = Tokeniser(tokenizer, data.template, limits.max_length, limits.max_prompt_length)
    sample = sorted(data.train, key=lambda pair: len(pair.prompt))[: invariants.SAMPLE]
    fresh = run.config.model.adapter is None
    run.checks += [
        invariants.check_finite(policy).say(),
        invariants.check_targets(policy, run.config.lora).say(),
        invariants.check_sequences(data.train + data.heldout, data.template, tokeniser.bos, limits.max_length).say(),
        invariants.check_prefix(data.train[: 4 * invariants.SAMPLE]).say(),
        invariants.check_policy_is_reference(engine, policy, sample, loss, fresh=fresh).say(),
    ]


def reference_pass(run: Run, engine: Engine, policy: PeftModel, data: Prepared) -> tuple[Split, Split]:
    """Compute what the reference says of every pair that the run will look at."""
    from qdpo.training.order import permutation, visited
    from qdpo.training.reference import cache_folder, reference_logps
    from qdpo.training.trainer import Split

    config = run.config
    steps = total_steps(config, len(data.train))
    wanted = visited(len(data.train), config.train.seed, config.train.pairs_per_step, steps)
    # in the order of first use, so that a longer run's passes begin with a shorter one's
    place = {pair: i for i, pair in enumerate(permutation(len(data.train), config.train.seed, 0))}
    begin = time.monotonic()
    results = [
        reference_logps(
            engine,
            policy,
            pairs,
            needed,
            budget=config.packing.tokens_without_grad,
            start=config.reference == "start",
            identity=reference_identity(run, engine),
            pin=run.folder / "reference",
            shared=cache_folder() if config.packing.reference_cache == "shared" else None,
        )
        for pairs, needed in (
            (data.train, sorted(wanted, key=place.__getitem__)),
            (data.heldout, range(len(data.heldout))),
        )
    ]
    computed, reused = sum(r.computed for r in results), sum(r.reused for r in results)
    checked, gap = sum(r.checked for r in results), max(r.gap for r in results)
    remark = f" ({reused:,} known, {checked} of them computed again: within {gap:.1g} nats)" if checked else ""
    remark = remark or (f" ({reused:,} from this run's folder)" if reused else "")
    console.good(
        f"reference: log-probabilities of {computed + reused:,} pairs in {time.monotonic() - begin:.1f} s{remark}"
    )
    run.save(reference={"computed": computed, "reused": reused, "checked": checked, "largest_difference": gap})
    return Split(data.train, results[0].table), Split(data.heldout, results[1].table)


def reference_identity(run: Run, engine: Engine) -> dict[str, str]:
    """What the reference's log-probabilities depend on besides the pair, by name."""
    from qdpo.files import sha256_file

    record, adapter = run.record, run.config.model.adapter
    identity = {
        "format": "1",
        "weights_sha256": record["base"]["weights_sha256"],
        "revision": str(record["base"]["revision"]),
        "quantization": json.dumps({k: v for k, v in record["quantization"].items() if k != "modules"}, sort_keys=True),
        "quantized_modules": digest_of(sorted(record["quantization"]["modules"])),
        "dtype": record["dtype"]["compute"],
        "attention": f"{engine.way}, {record['engine']['attention']}",
    }
    if run.config.reference == "start" and adapter is not None:
        identity["adapter_sha256"] = sha256_file(Path(adapter) / "adapter_model.safetensors")
    return identity


# -------------------------------------------------------------------------------------------------------- the training


def total_steps(config: RunConfig, pairs: int) -> int:
    """Optimizer steps of a run on that many training pairs."""
    return steps_for(pairs, config.train.pairs_per_step, config.train.num_train_epochs, config.train.max_steps)


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
        "optim": train.optim,
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
    run: Run, policy: PeftModel, train: Split, heldout: Split, data: Prepared, loss: LossSettings
) -> tuple[DpoTrainer, TerminalCallback]:
    """The trainer with its callbacks, and the display, which must be closed whatever happens."""
    from transformers import TrainingArguments

    from qdpo.training.trainer import DpoTrainer, EpochCallback

    config = run.config
    trainer = DpoTrainer(
        policy,
        TrainingArguments(**training_arguments(run)),
        train=train,
        heldout=heldout,
        text=data.text,
        loss=loss,
        packing=config.packing,
        way=run.record["engine"]["way"],
        base_name=config.model.name,
        keep=config.train.keep,
        callbacks=first_callbacks(run),
    )
    trainer.add_callback(EpochCallback(trainer))
    return trainer, add_callbacks(run, trainer)


def build_trl_trainer(
    run: Run, policy: PeftModel, tokenizer: PreTrainedTokenizerBase, data: Prepared
) -> tuple[TrlTrainer, TerminalCallback]:
    """Stock TRL's trainer with the same callbacks, and the display."""
    from qdpo.training.trl_engine import TrlTrainer

    trainer = TrlTrainer(policy, training_arguments(run), run.config, data, tokenizer, first_callbacks(run))
    return trainer, add_callbacks(run, trainer)


def first_callbacks(run: Run) -> list[TrainerCallback]:
    """The callbacks that decide about the step which was made, before any that looks at their decisions."""
    from qdpo.training.callbacks import ScheduleCallback
    from qdpo.training.invariants import FirstStepCallback

    return [ScheduleCallback(run.config.train.save_minutes), FirstStepCallback(run.checks)]


def add_callbacks(run: Run, trainer: DpoTrainer | TrlTrainer) -> TerminalCallback:
    """Add what records and shows a run, the display last; it is returned and must be closed whatever happens."""
    from transformers import PrinterCallback

    from qdpo.training.callbacks import MetricsFile, SaveBestCallback
    from qdpo.training.terminal import TerminalCallback

    config = run.config
    if run.device.kind == "cpu" and config.train.optim.startswith("paged"):
        console.note(f"optim {config.train.optim}: paging needs CUDA, using the same optimizer of bitsandbytes unpaged")
    trainer.remove_callback(PrinterCallback)
    if config.train.load_best != "none":
        trainer.add_callback(SaveBestCallback())
    trainer.add_callback(MetricsFile(run.folder / "metrics.jsonl", run.device, lambda: trainer.tokens_seen))
    terminal = TerminalCallback()
    trainer.add_callback(terminal)
    return terminal


# ---------------------------------------------------------------------------------------------------------- the result


def finish(
    run: Run,
    trainer: DpoTrainer | TrlTrainer,
    policy: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seconds: float,
) -> None:
    """Write the final adapter, the result, the plots and the card."""
    from qdpo.files import sha256_file
    from qdpo.report.card import write_card
    from qdpo.report.plots import draw_plots
    from qdpo.training import checkpoint
    from qdpo.training.callbacks import read_metrics

    step = trainer.state.global_step
    if run.config.train.load_best != "none" and trainer.state.best_global_step:
        step = trainer.state.best_global_step
        checkpoint.read_adapter(policy, checkpoint.step_folder(trainer.checkpoints, step))
        console.note(f"the final adapter is the best evaluation's, step {step} ({trainer.state.best_metric:.4f})")
    adapter = run.folder / "adapter"
    with staged_folder(adapter, replace=True) as staging:
        checkpoint.write_adapter(policy, staging, run.config.model.name)
        tokenizer.save_pretrained(str(staging))
    lines = [line for line in read_metrics(run.folder / "metrics.jsonl") if "eval_loss" in line]
    before = next(line for line in lines if line["step"] == 0)
    after = next(line for line in reversed(lines) if line["step"] == step)
    run.save(
        state="finished",
        checks=[{"name": check.name, "detail": check.detail} for check in run.checks],
        result={
            "steps": trainer.state.global_step,
            "epochs": trainer.state.epoch,
            "seconds": seconds,
            "peak_memory_bytes": peak_memory(run.device),
            "tokens": trainer.tokens_seen,
            "before": before,
            "after": after,
            "text_nll": (
                {"before": before["eval_text_nll"], "after": after["eval_text_nll"]} if trainer.text else None
            ),
            "adapter_step": step,
            "adapter_sha256": sha256_file(adapter / checkpoint.ADAPTER_WEIGHTS),
        },
    )
    draw_plots(run.folder)
    write_card(run.folder)
    say_result(run, before, after, seconds)


def say_result(run: Run, before: dict[str, float], after: dict[str, float], seconds: float) -> None:
    """The before/after table and where things are."""
    rows = [
        ("held-out pairs: prefers the chosen", "eval_logps/accuracies", "{:.1%}"),
        ("held-out reward accuracy", "eval_rewards/accuracies", "{:.1%}"),
        ("held-out reward margin", "eval_rewards/margins", "{:.3f}"),
        ("held-out loss", "eval_loss", "{:.4f}"),
        ("held-out text, nats per token", "eval_text_nll", "{:.4f}"),
    ]
    console.say(f"{'':36}{'before':>10}{'after':>10}")
    for label, key, form in rows:
        if key in before and key in after:
            first = "ties" if key == "eval_rewards/accuracies" and before["eval_rewards/margins"] == 0 else before[key]
            start = first if isinstance(first, str) else form.format(first)
            console.say(f"{label:36}{start:>10}{form.format(after[key]):>10}")
    peak = peak_memory(run.device) / GIB
    console.good(f"done in {seconds:.0f} s, peak memory {peak:.2f} GiB; adapter, plots and card in {run.folder}")
