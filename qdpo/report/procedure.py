"""The card's section on training: settings, results over steps, machine, versions."""

from __future__ import annotations

from typing import Any

from qdpo.config.schema import RunConfig
from qdpo.report import markdown as md
from qdpo.run.record import RunRecord, dig

COLUMNS = (
    "Training Loss",
    "Epoch",
    "Step",
    "Validation Loss",
    "Rewards/chosen",
    "Rewards/rejected",
    "Rewards/accuracies",
    "Rewards/margins",
    "Logps/rejected",
    "Logps/chosen",
    "Logits/rejected",
    "Logits/chosen",
)
"""The columns of the training-results table, as transformers and TRL name them."""

NO_LOG = "No log"

VERSIONS = (
    ("qdpo", "qdpo"),
    ("python", "Python"),
    ("peft", "PEFT"),
    ("trl", "TRL"),
    ("transformers", "Transformers"),
    ("torch", "Pytorch"),
    ("bitsandbytes", "bitsandbytes"),
    ("accelerate", "Accelerate"),
    ("datasets", "Datasets"),
    ("tokenizers", "Tokenizers"),
    ("safetensors", "Safetensors"),
)


def procedure(record: RunRecord) -> str:
    """`## Training procedure` with its subsections."""
    parts = [
        "## Training procedure",
        f"### Training hyperparameters\n\n{_hyperparameters(record)}",
        _notes(record.config),
        _checks(record),
        f"### Training results\n\n{_results(record)}",
        f"### Hardware, time and memory\n\n{_hardware(record)}",
        f"### Framework versions\n\n{_versions(record)}",
    ]
    return "\n\n".join(part for part in parts if part)


def _hyperparameters(record: RunRecord) -> str:
    config = record.config
    lora = config.lora
    adapter = (
        f"r={lora.r}",
        f"lora_alpha={lora.lora_alpha}",
        f"lora_dropout={md.short(lora.lora_dropout)}",
        f'bias="{lora.bias}"',
        f'task_type="{lora.task_type}"',
        f"use_rslora={lora.use_rslora}",
        f"target_modules={lora.target_modules}",
    )
    return "\n\n".join(
        [
            "The following hyperparameters were used during training:\n" + "\n".join(_training(record)),
            "**LoRA**:\n" + "\n".join(f"* {md.text(line)}" for line in adapter),
            "**Preference loss**:\n" + "\n".join(f"* {md.text(line)}" for line in _loss(config)),
        ]
    )


def _training(record: RunRecord) -> list[str]:
    train = record.config.train
    warmup = (
        f"lr_scheduler_warmup_ratio: {md.short(train.warmup_ratio)}"
        if train.warmup_ratio
        else f"lr_scheduler_warmup_steps: {train.warmup_steps}"
    )
    length = (
        f"training_steps: {train.max_steps}"
        if train.max_steps is not None
        else f"num_epochs: {md.short(train.num_train_epochs)}"
    )
    lines = (
        f"learning_rate: {md.short(train.learning_rate)}",
        f"total_train_batch_size: {train.pairs_per_step} (pairs per optimizer step)",
        f"seed: {train.seed}",
        f"optimizer: {_optimizer(record)}",
        f"lr_scheduler_type: {train.lr_scheduler_type}",
        warmup,
        length,
        f"weight_decay: {md.short(train.weight_decay)}",
        f"max_grad_norm: {md.short(train.max_grad_norm)}",
        f"gradient_checkpointing: {train.gradient_checkpointing}",
        f"dropout during training: {'off' if train.disable_dropout else 'on'}",
        f"final adapter: {_final_adapter(record)}",
        f"engine: {record.config.engine}",
    )
    return [f"- {md.text(line)}" for line in lines]


def _optimizer(record: RunRecord) -> str:
    train = record.config.train
    used = record.run.get("optimizer")
    name, remark = str(train.optim), ""
    if isinstance(used, dict) and used.get("name"):
        name = str(used["name"])
        remark = f" ({used['reason']})" if used.get("reason") else ""
    elif dig(record.run, "hardware", "kind") == "cpu" and name.startswith("paged"):
        remark = " (without paging, which needs CUDA)"
    betas = f"({md.short(train.adam_beta1)},{md.short(train.adam_beta2)})"
    return f"{name} with betas={betas} and epsilon={md.short(train.adam_epsilon)}{remark}"


def _final_adapter(record: RunRecord) -> str:
    rule = {"none": "the last step's", "accuracy": "the best by held-out accuracy", "loss": "the best by held-out loss"}
    step = f" (step {record.adapter_step})" if record.adapter_step is not None else ""
    return f"{rule[record.config.train.load_best]}{step}"


def _loss(config: RunConfig) -> list[str]:
    loss = config.loss
    lines = [f"loss_type={loss.loss_type if len(loss.loss_type) > 1 else loss.loss_type[0]}"]
    if loss.loss_weights is not None:
        lines.append(f"loss_weights={loss.loss_weights}")
    lines += [f"beta={md.short(loss.beta)}", f"label_smoothing={md.short(loss.label_smoothing)}"]
    if "discopop" in loss.loss_type:
        lines.append(f"discopop_tau={md.short(loss.discopop_tau)}")
    return [
        *lines,
        f"max_prompt_length={config.data.max_prompt_length}",
        f"max_length={config.data.max_length}",
    ]


def _notes(config: RunConfig) -> str:
    if not config.notes:
        return ""
    return "### Notes on the recipe\n\n" + "\n".join(f"- {md.text(note)}" for note in config.notes)


def _checks(record: RunRecord) -> str:
    checks = [entry for entry in record.run.get("checks") or [] if isinstance(entry, dict) and entry.get("name")]
    if not checks:
        return ""
    lines = [
        f"- {md.text(entry['name'])}" + (f": {md.text(entry['detail'])}" if entry.get("detail") else "")
        for entry in checks
    ]
    return "### Checks that held when training started\n\n" + "\n".join(lines)


def _results(record: RunRecord) -> str:
    if not record.evals:
        return "No evaluation was logged."
    return md.table(COLUMNS, [_result_row(record, row) for row in record.evals])


def _result_row(record: RunRecord, row: dict[str, Any]) -> list[str]:
    epoch = md.number(row.get("epoch"))
    return [
        _training_loss(record, row["step"]),
        md.MISSING if epoch is None else f"{round(epoch, 2):g}",
        str(row["step"]),
        md.decimal(row.get("loss")),
        *(md.decimal(row.get(column.lower())) for column in COLUMNS[4:]),
    ]


def _training_loss(record: RunRecord, step: int) -> str:
    """The last loss that was logged at or before a step."""
    earlier = [row for row in record.train if row["step"] <= step and "loss" in row]
    return md.decimal(earlier[-1]["loss"]) if earlier else NO_LOG


def _hardware(record: RunRecord) -> str:
    hardware, result = record.run.get("hardware") or {}, record.run.get("result") or {}
    capability = hardware.get("capability")
    version = f", compute capability {'.'.join(map(str, capability))}" if isinstance(capability, list | tuple) else ""
    where = "allocated on the GPU" if hardware.get("kind") == "cuda" else "resident in the process"
    dtype = record.run.get("dtype") or {}
    reason = f" ({md.text(dtype['reason'])})" if dtype.get("reason") else ""
    lines = [
        f"- Hardware: {md.text(hardware.get('name') or md.MISSING)}{version}, "
        f"{md.gib(hardware.get('memory_bytes'))} of memory",
        f"- Compute type: {md.text(dtype.get('compute') or md.MISSING)}{reason}",
        f"- Time: {md.duration(result.get('seconds'))} for {md.count(result.get('steps'))} steps "
        f"({md.decimal(result.get('epochs'), 2)} epochs, {md.count(result.get('tokens'))} tokens)",
        f"- Peak memory: {md.gib(result.get('peak_memory_bytes'))} {where}",
    ]
    return "\n".join(lines)


def _versions(record: RunRecord) -> str:
    found = {"qdpo": record.run.get("qdpo"), **(record.run.get("versions") or {})}
    lines = [f"- {title} {md.text(found[key])}" for key, title in VERSIONS if found.get(key)]
    return "\n".join(lines) if lines else "The run recorded no versions."
