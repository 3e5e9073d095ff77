"""Last stage: the final adapter, the result, the plots, the card and the report page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qdpo import console
from qdpo.files import staged_folder
from qdpo.hardware import GIB
from qdpo.run.folder import ADAPTER, CHECKPOINTS, METRICS
from qdpo.run.metrics import read_metrics
from qdpo.run.pairs import write_pairs
from qdpo.run.schema import Check, Result
from qdpo.training.stages.state import RunState

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from qdpo.training.recipe import Recipe


def finish(run: RunState, recipe: Recipe, policy: PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the final adapter, the result, the plots, the scored pairs, the card and the report page."""
    from qdpo.export.output import link_or_copy
    from qdpo.files import sha256_file
    from qdpo.model.grid_file import GRIDS
    from qdpo.report.plots import draw_plots
    from qdpo.report.refresh import refresh
    from qdpo.run import checkpoint
    from qdpo.run.tokenizer import save_tokenizer

    progress = recipe.progress
    step = progress.step
    if run.config.train.load_best != "none" and progress.best_step:
        step = progress.best_step
        checkpoint.read_adapter(policy, checkpoint.step_folder(run.folder / CHECKPOINTS, step))
        console.note(f"the final adapter is the best evaluation's, step {step} ({progress.best_value:.4f})")
    adapter = run.folder / ADAPTER
    with staged_folder(adapter, replace=True) as staging:
        checkpoint.write_adapter(policy, staging, run.config.model.name)
        save_tokenizer(tokenizer, run.config.model, staging, ())
        if run.config.train.grid is not None:
            link_or_copy(run.folder / GRIDS, staging / GRIDS)
    lines = [line for line in read_metrics(run.folder / METRICS) if "eval_loss" in line]
    before = next(line for line in lines if line["step"] == 0)
    after = next(line for line in reversed(lines) if line["step"] == step)
    run.note_process(state="finished")
    run.save(
        state="finished",
        checks=[Check(name=check.name, detail=check.detail) for check in run.checks],
        result=Result(
            steps=progress.step,
            epochs=recipe.epoch,
            seconds=run.record.seconds,
            peak_memory_bytes=run.record.peak_memory_bytes,
            tokens=progress.tokens_seen,
            before=before,
            after=after,
            text_nll={"before": before["eval_text_nll"], "after": after["eval_text_nll"]} if recipe.text else None,
            adapter_step=step,
            adapter_sha256=sha256_file(adapter / checkpoint.ADAPTER_WEIGHTS),
        ),
    )
    draw_plots(run.folder)
    save_pairs(run, recipe, tokenizer, step)
    refresh(run.folder)
    say_result(run, before, after)


def save_pairs(run: RunState, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, step: int) -> None:
    """Write the held-out pairs as the final adapter sees them, for the report page."""
    import torch

    if run.config.engine == "trl":
        console.note(
            f"engine: trl keeps no score of single pairs; for the report's pairs: qdpo eval --run {run.folder}"
        )
        return
    heldout, logps = recipe.heldout, recipe.heldout_logps.get(step)
    if logps is None:
        # the step was evaluated before a resume; its adapter is loaded
        scores = recipe.budgets.score_all(recipe.engine, heldout.pairs, "scoring the held-out pairs")
        logps = torch.stack(scores.logps.chunk(2), 1)
    write_pairs(run.folder, heldout.pairs, logps.tolist(), heldout.reference.tolist(), run.config.loss.beta, tokenizer)


def say_result(run: RunState, before: dict[str, float], after: dict[str, float]) -> None:
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
    result, processes = run.record.result, len(run.record.processes or ())
    assert result.seconds is not None
    assert result.peak_memory_bytes is not None
    time = f"{result.seconds:.0f} s" + (f" in {processes} processes" if processes > 1 else "")
    peak = f"peak memory {result.peak_memory_bytes / GIB:.2f} GiB"
    console.good(f"done in {time}, {peak}; adapter, plots and card in {run.folder}")
