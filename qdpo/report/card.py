"""The model card: measured facts from the run directory's files, in the layout of the cards it stands beside."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qdpo import files
from qdpo.report import exports, names, usage, words
from qdpo.report import markdown as md
from qdpo.report.data_section import training_data
from qdpo.report.evaluation_section import evaluation
from qdpo.report.front_matter import front_matter, license_fields
from qdpo.report.procedure import procedure
from qdpo.run.record import Published, RunRecord, all_ties, dig, read_run

CARD = "README.md"

RESULT_ROWS = (
    ("Loss", "loss"),
    ("Rewards/chosen", "rewards/chosen"),
    ("Rewards/rejected", "rewards/rejected"),
    ("Rewards/accuracies", "rewards/accuracies"),
    ("Rewards/margins", "rewards/margins"),
    ("Logps/rejected", "logps/rejected"),
    ("Logps/chosen", "logps/chosen"),
    ("Logits/rejected", "logits/rejected"),
    ("Logits/chosen", "logits/chosen"),
)
"""Title and key of what a card reports about the held-out pairs, in the order of the seeds' cards."""

PREFERS = ("Prefers the chosen (by log-probability)", "logps/accuracies")
"""The one accuracy that is defined before training too: it does not compare with the reference."""

TEXT_NLL = "text_nll"

PLOTS = (
    ("loss.png", "Loss over steps, training and held-out"),
    ("rewards.png", "Rewards of chosen and rejected completions and their margin over steps"),
    ("accuracies.png", "Share of pairs whose chosen completion has the higher reward, over steps"),
)


def render_card(run_dir: Path, published: Published | None = None) -> str:
    """The model card of a run as Markdown, from the files in its run directory alone.

    Args:
        run_dir: the run directory.
        published: the repository that the card is for; None for the run directory itself.

    Raises:
        InputMissingError: the folder is not a run directory, or a file in it cannot be understood.
    """
    record = dataclasses.replace(read_run(run_dir), published=published)
    sections: tuple[Callable[[RunRecord], str], ...] = (
        front_matter,
        _introduction,
        _comparison,
        words.verdict,
        _plots,
        usage.how_to_use,
        words.samples,
        evaluation,
        exports.verification,
        _description,
        _intended_uses,
        training_data,
        procedure,
        usage.reproduce,
    )
    return "\n\n".join(part for section in sections if (part := section(record))) + "\n"


def write_card(run_dir: Path) -> None:
    """Write the card to `README.md` in the run directory.

    Raises:
        InputMissingError: as `render_card`.
        DiskError, OutputError: the file cannot be written.
    """
    files.atomic_write(run_dir / CARD, render_card(run_dir))


def _introduction(record: RunRecord) -> str:
    how = "held in 4-bit NF4 (QLoRA)" if dig(record.run, "quantization", "method") == "nf4" else "held as stored"
    pairs = names.dataset_link(names.dataset_name(record))
    what = f"This is a LoRA adapter for {names.base_link(record)}, trained"
    if record.merged:
        what = f"This is {names.base_link(record)} with a LoRA adapter merged into it, which was trained"
    parts = [
        f"# {md.text(record.name)}",
        f"{what} with {names.method(record.config)} on {pairs}. In training the base was {how} and never changed; only "
        "the adapter was trained.",
    ]
    if record.config.about:
        parts.append(f"The recipe in a line: {md.text(record.config.about.rstrip('. '))}.")
    if names.is_demonstration(record):
        size = md.count(dig(record.run, "base", "parameters"))
        parts.append(
            f"**This is a demonstration model.** Its base, a model of {size} parameters, ships inside the qdpo "
            "package. It shows the whole way from a 4-bit base to a measured adapter on a small machine, and is of no "
            "other use."
        )
    state = record.run.get("state")
    if state != "finished":
        parts.append(
            f"**The run is not finished** (state: {md.text(state or 'unknown')}): what follows is as far as it got."
        )
    return "\n\n".join([*parts, _results(record)])


def _results(record: RunRecord) -> str:
    if not record.after:
        return "There is no evaluation of the adapter in the run directory, so no results are stated."
    lines = [f"- {title}: {md.decimal(record.after.get(key))}" for title, key in RESULT_ROWS]
    return "It achieves the following results on the evaluation set:\n" + "\n".join(lines)


def _comparison(record: RunRecord) -> str:
    before, after = record.before, record.after
    if not before or not after:
        return ""
    rows = [_comparison_row(title, before.get(key), after.get(key)) for title, key in RESULT_ROWS]
    if PREFERS[1] in before and PREFERS[1] in after:
        rows.insert(0, _comparison_row(PREFERS[0], before[PREFERS[1]], after[PREFERS[1]]))
    parts = ["## Before and after"]
    if TEXT_NLL in before or TEXT_NLL in after:
        rows.append(_comparison_row("NLL of held-out text", before.get(TEXT_NLL), after.get(TEXT_NLL)))
    header = ("Held-out", f"Before (step {before['step']})", f"After (step {after['step']})", "Change")
    parts.append(md.table(header, rows, align="first-left"))
    if all_ties(before):
        parts.append(
            f"At step {before['step']} the policy equals its reference: every reward is 0, no pair is won, and the "
            "accuracy of that column says nothing about the base."
        )
    parts.append(_forgetting(before.get(TEXT_NLL), after.get(TEXT_NLL)))
    return "\n\n".join(parts)


def _comparison_row(title: str, before: Any, after: Any) -> tuple[str, str, str, str]:
    old, new = md.number(before), md.number(after)
    change = md.MISSING if old is None or new is None else f"{new - old:+.4f}"
    return title, md.decimal(before), md.decimal(after), change


def _forgetting(before: Any, after: Any) -> str:
    old, new = md.number(before), md.number(after)
    if old is None or new is None:
        return "Forgetting was not measured: there is no held-out plain text with a likelihood before and after."
    percent = f" ({100 * (new - old) / old:+.1f} %)" if old > 0 else ""
    return (
        f"The negative log-likelihood of held-out plain text went from {old:.4f} to {new:.4f} nats per token{percent}: "
        "a rise would mean that the adapter forgets what the base knew."
    )


def _plots(record: RunRecord) -> str:
    present = [(name, title) for name, title in PLOTS if (record.folder / "plots" / name).is_file()]
    return "\n\n".join(f"![{title}](plots/{name})" for name, title in present)


def _description(record: RunRecord) -> str:
    config, run = record.config, record.run
    kinds = ", ".join(md.code(name) for name in config.lora.target_modules)
    size = md.count(dig(run, "base", "parameters"))
    lines = [
        f"- **Model type:** LoRA adapter of rank {config.lora.r} on {kinds} "
        f"({md.count(dig(run, 'adapter', 'modules'))} layers, "
        f"{md.count(dig(run, 'adapter', 'trainable_parameters'))} trainable parameters) for a base of {size} "
        f"parameters ({md.text(dig(run, 'base', 'architecture') or 'architecture not recorded')})",
        f"- **Finetuned from model:** {names.base_link(record)}{_revision(record)}",
        f"- **License:** {_license(record)}",
        f"- **Base weights during training:** {_quantization(record)}",
        f"- **Reference of the rewards:** {_reference(record)}",
    ]
    if config.model.adapter:
        lines.append(f"- **Continued from the adapter:** {md.code(md.public_name(config.model.adapter))}")
    if not names.base_on_hub(record):
        lines.append(
            "- **`base_model` in the metadata:** left out, because the base is not on the Hugging Face hub and its "
            "name there would be somebody else's"
        )
    return "## Model description\n\n" + "\n".join(lines)


def _revision(record: RunRecord) -> str:
    if revision := names.base_revision(record):
        return f", revision {md.code(revision)}"
    digest = dig(record.run, "base", "weights_sha256")
    return f", weights with SHA-256 {md.code(digest)}" if digest else ""


def _license(record: RunRecord) -> str:
    stated = dig(record.run, "base", "license")
    if license_fields(stated):
        return (
            f"{md.text(stated)}, inherited: the adapter changes the base's weights and is of no use without them, so "
            "the base's terms hold for it; the terms of the training data are a question of their own"
        )
    return (
        "not stated here, because the base states none that could be read; ask its authors before you share the adapter"
    )


def _quantization(record: RunRecord) -> str:
    found = record.run.get("quantization") or {}
    if found.get("method") != "nf4":
        return "as stored, not quantized"
    scales = "quantized scales" if found.get("double_quant") else "plain scales"
    return f"4-bit NF4 by bitsandbytes, block size {md.count(found.get('blocksize'))}, {scales}"


def _reference(record: RunRecord) -> str:
    if record.config.reference == "start":
        return "the adapter that training started from"
    return "the same base with the adapter switched off"


def _intended_uses(record: RunRecord) -> str:
    demonstration = (
        "The demonstration model serves to try qdpo and to test an installation. Its sentences come from a few "
        "templates.\n\n"
        if names.is_demonstration(record)
        else ""
    )
    return (
        "## Intended uses & limitations\n\n"
        f"{demonstration}"
        "The adapter is meant for text generation with its base, on prompts like those it was trained on, and for "
        "studying preference optimization. It prefers what the training pairs prefer, mistakes and biases included.\n\n"
        "The evaluation above says how often, and by how much, the adapter favours the chosen completion of held-out "
        "pairs over the rejected one, compared with its reference. It says nothing about how good, true or safe the "
        "text is that the model writes. The limits of the base apply. Training saw the base as described above; loaded "
        "or quantized in another way, it answers slightly differently."
    )
