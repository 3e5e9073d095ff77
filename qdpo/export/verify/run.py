"""`qdpo verify`: all checks on all artefacts of an export."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qdpo.console import say, warn
from qdpo.errors import InputMissingError, QdpoError
from qdpo.export.formats import targets_of
from qdpo.export.output import RECORD, stamped
from qdpo.export.pairs import Heldout, read_heldout
from qdpo.export.source import TrainedRun, load_run
from qdpo.export.verify.checks import Check, check_integrity
from qdpo.export.verify.parity import PARITY, Scores, compare, describe, judge, limits_of, score, tokens_to_keep
from qdpo.export.verify.report import Report, card_section
from qdpo.export.verify.scorers import TorchScorer, torch_scorer
from qdpo.export.verify.target import Target
from qdpo.export.verify.tokens import check_tokens
from qdpo.export.whole import merged_model
from qdpo.files import atomic_write, read_json, write_json
from qdpo.libraries import quiet_libraries
from qdpo.model.merged import MergedModel
from qdpo.run.trained import load_trained

SAMPLES = 3
SAMPLE_TOKENS = 40


@dataclass(frozen=True)
class Yardstick:
    """What exports of a run are measured against: computed once, used for every artefact.

    Attributes:
        heldout: the pairs.
        base: scores of the base that rewards are measured against.
        trained: scores of the trained policy.
        answers: its greedy answers to the first prompts.
        tokens_kept: tokens of each completion whose distributions are compared.
    """

    heldout: Heldout
    base: Scores
    trained: Scores
    answers: list[list[int]]
    tokens_kept: int


def verify_export(folder: Path, run_folder: Path | None = None, pairs: int | None = None) -> dict[str, Any]:
    """Check an export and write its verify.json and card section.

    Args:
        folder: the export.
        run_folder: the run that it came from; None looks above the folder.
        pairs: how many held-out pairs are scored; None takes the run's `verify.pairs`.

    Returns:
        what verify.json holds: `passed` says that no check failed, `scored` that preferences could be compared at all.

    Raises:
        InputMissingError: it is no export, or its run is not found.
    """
    quiet_libraries()
    record = read_json(folder / RECORD)
    integrity = check_integrity(folder)
    run = load_run(run_folder or find_run(folder))
    if not integrity.passed:
        # A damaged artefact is not opened: what it gives would be neither here nor there.
        reports = [Report(folder.name, str(record["format"]), [integrity])]
    else:
        reports = []
        targets = targets_of(folder, record, run)
        yardstick = measure(run, pairs or limits_of(run).pairs)
        model = run.merged(record.get("merge_base") or "original")
        merged = None
        if isinstance(yardstick, Yardstick) and not all(target.is_the_merge for target in targets):
            merged = merged_scores(model, yardstick)
        for target in targets:
            say(f"verifying {target.name} ...")
            reports.append(examine(target, model, yardstick, merged))
            reports[-1].checks.insert(0, integrity)
    verdict = stamped() | {
        "format": record["format"],
        "merge_base": record.get("merge_base"),
        "passed": all(report.passed for report in reports),
        "scored": not any(check.name == PARITY and check.passed is None for r in reports for check in r.checks),
        "artefacts": [report.record() for report in reports],
    }
    write_json(folder / "verify.json", verdict)
    atomic_write(folder / "README.md", card_section(verdict))
    for report in reports:
        report.show()
    if not verdict["scored"]:
        warn(f"{folder} was not scored: nothing shows yet that it prefers what the trained model prefers")
    return verdict


def find_run(folder: Path) -> Path:
    """The run directory above RUN/export/FORMAT.

    Raises:
        InputMissingError: it is not there.
    """
    for above in folder.resolve().parents:
        if (above / "run.json").is_file() and (above / "adapter").is_dir():
            return above
    raise InputMissingError(f"there is no run directory above {folder}", "name it with --run DIR")


def measure(run: TrainedRun, count: int) -> Yardstick | str:
    """Score base and trained policy on the run's held-out pairs; the reason where that is impossible."""
    try:
        heldout = read_heldout(run, count)
        trained = load_trained(run.folder)
    except QdpoError as error:
        return error.message
    nf4 = run.record["quantization"]["method"] == "nf4"
    scorer = TorchScorer(trained.policy, "transformers, 4 bit" if nf4 else "transformers")
    kept = tokens_to_keep(heldout, int(trained.policy.config.vocab_size))
    policy = score(scorer, heldout.pairs, kept)
    with trained.policy.disable_adapter():
        base = score(scorer, heldout.pairs, kept)
    answers = [scorer.generate(ids, heldout.ends, SAMPLE_TOKENS) for _, ids in heldout.prompts[:SAMPLES]]
    del trained, scorer
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Yardstick(heldout, base, policy, answers, kept)


def merged_scores(model: MergedModel, yardstick: Yardstick) -> Scores:
    """Scores of the merged weights before any rounding to the export's precision."""
    with torch_scorer(merged_model(model), "transformers") as scorer:
        return score(scorer, yardstick.heldout.pairs, yardstick.tokens_kept)


def examine(target: Target, model: MergedModel, yardstick: Yardstick | str, merged: Scores | None) -> Report:
    """All checks on one artefact but its bytes.

    Args:
        target: the artefact.
        model: what it should hold.
        yardstick: what it is measured against, or why there is nothing.
        merged: scores of `model`, where the artefact does not give them itself.
    """
    report = Report(target.name, target.kind)
    report.checks += guarded("read-back", lambda: target.read_back(model))
    heldout = None if isinstance(yardstick, str) else yardstick.heldout
    report.checks += guarded("same tokens", lambda: [check_tokens(target, heldout)])
    if isinstance(yardstick, str):
        report.checks.append(Check(PARITY, None, yardstick))
        return report
    report.checks += guarded("engine", target.not_run)
    report.checks += guarded(PARITY, lambda: [check_parity(report, target, model, yardstick, merged)])
    return report


def guarded(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    """The results of a check; an artefact that cannot even be opened has failed it."""
    try:
        return check()
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, TypeError) as error:
        return [Check(name, False, f"cannot be read: {type(error).__name__}: {str(error).splitlines()[0:1]}")]
    except QdpoError as error:
        return [Check(name, False, error.message)]


def check_parity(
    report: Report, target: Target, model: MergedModel, yardstick: Yardstick, merged: Scores | None
) -> Check:
    """Score the artefact, fill the report's table and samples, and judge."""
    heldout = yardstick.heldout
    with target.scorer(model, heldout.longest + SAMPLE_TOKENS) as scorer:
        exported = score(scorer, heldout.pairs, yardstick.tokens_kept)
        for (text, ids), answer in zip(heldout.prompts, yardstick.answers, strict=False):
            own = scorer.generate(ids, heldout.ends, SAMPLE_TOKENS)
            decode = heldout.tokenizer.decode
            report.samples.append({"prompt": text, "trained": decode(answer), "exported": decode(own)})
    report.pairs = len(heldout.pairs)
    rows = {"base": yardstick.base, "trained": yardstick.trained, "merged": merged, "exported": exported}
    report.parity = {
        name: compare(scores, yardstick.trained, yardstick.base) for name, scores in rows.items() if scores is not None
    }
    row, against = report.parity["exported"], "the trained model"
    if target.merge_base != "trained":
        if merged is None:
            return Check(PARITY, True, describe(row, against))
        # Into the original base the merge itself is not the trained policy; the file is held to the merge.
        row = {**row, **{key: compare(exported, merged, yardstick.base)[key] for key in ("kl", "kl_max", "top1")}}
        against = "the merged weights"
    return judge(target.kind, limits_of(target.run), row, against)
