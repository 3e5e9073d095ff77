"""`qdpo verify`: all checks on all artefacts of an export."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qdpo import __version__
from qdpo.console import say, warn
from qdpo.data.pairs import TokenPair
from qdpo.errors import InputMissingError, QdpoError
from qdpo.export.merged import MergedModel
from qdpo.export.output import RECORD
from qdpo.export.source import Run, load_run
from qdpo.export.verify.checks import Check
from qdpo.export.verify.heldout import Heldout, read_heldout
from qdpo.export.verify.integrity import check_integrity
from qdpo.export.verify.limits import describe, judge, limits_of
from qdpo.export.verify.parity import Scores, compare, score, tokens_to_keep
from qdpo.export.verify.report import Report, card_section
from qdpo.export.verify.scorers import TorchScorer
from qdpo.export.verify.target import Target, torch_scorer
from qdpo.export.verify.targets import targets_of
from qdpo.export.verify.tokens import check_tokens
from qdpo.export.whole import merged_model
from qdpo.files import atomic_write, read_json, write_json
from qdpo.libraries import quiet_libraries

PARITY = "preference parity"
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
        context: tokens of the longest sequence, with room for an answer.
    """

    heldout: Heldout
    base: Scores
    trained: Scores
    answers: list[list[int]]
    tokens_kept: int
    context: int


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
    # A damaged artefact is not opened: what it gives would be neither here nor there.
    targets = targets_of(folder, record, run) if integrity.passed else []
    reports = [Report(folder.name, str(record["format"]), [integrity])] if not targets else []
    if targets:
        yardstick, reason = measure(run, pairs or limits_of(run).pairs)
        model = run.merged(record.get("merge_base") or "original")
        merged = merged_scores(model, yardstick) if yardstick and record["format"] != "safetensors" else None
        for target in targets:
            say(f"verifying {target.name} ...")
            reports.append(examine(target, model, run, yardstick, reason, merged, record))
            reports[-1].checks.insert(0, integrity)
    verdict = {
        "schema": 1,
        "qdpo": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
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


def measure(run: Run, count: int) -> tuple[Yardstick | None, str]:
    """Score base and trained policy on the run's held-out pairs; None and the reason where that is impossible."""
    from qdpo.run.trained import load_trained

    try:
        heldout = read_heldout(run, count)
        trained = load_trained(run.folder)
    except QdpoError as error:
        return None, error.message
    scorer = TorchScorer(trained.policy)
    kept = tokens_to_keep(heldout.pairs, int(trained.policy.config.vocab_size))
    policy = score(scorer, heldout.pairs, kept)
    with trained.policy.disable_adapter():
        base = score(scorer, heldout.pairs, kept)
    answers = [scorer.generate(ids, heldout.ends, SAMPLE_TOKENS) for _, ids in heldout.prompts[:SAMPLES]]
    longest = max(len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in heldout.pairs)
    policy.engine = base.engine = (
        "transformers, 4 bit" if run.record["quantization"]["method"] == "nf4" else "transformers"
    )
    del trained, scorer
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Yardstick(heldout, base, policy, answers, kept, longest + SAMPLE_TOKENS), ""


def merged_scores(model: MergedModel, yardstick: Yardstick) -> Scores:
    """Scores of the merged weights before any rounding to the export's precision."""
    with torch_scorer(merged_model(model), "transformers") as scorer:
        return score(scorer, yardstick.heldout.pairs, yardstick.tokens_kept)


def examine(
    target: Target,
    model: MergedModel,
    run: Run,
    yardstick: Yardstick | None,
    reason: str,
    merged: Scores | None,
    record: dict[str, Any],
) -> Report:
    """All checks on one artefact but its bytes."""
    report = Report(target.name, target.kind)
    report.checks += guarded("read-back", lambda: target.read_back(model))
    report.checks += guarded(
        "same tokens", lambda: [check_tokens(target, run, yardstick.heldout if yardstick else None)]
    )
    if yardstick is None:
        report.checks.append(Check(PARITY, None, reason))
        return report
    report.checks += guarded("engine", target.not_run)
    report.checks += guarded(
        PARITY, lambda: [parity(report, target, model, yardstick, merged, run, record.get("merge_base"))]
    )
    return report


def guarded(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    """The results of a check; an artefact that cannot even be opened has failed it."""
    try:
        return check()
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, TypeError) as error:
        return [Check(name, False, f"cannot be read: {type(error).__name__}: {str(error).splitlines()[0:1]}")]
    except QdpoError as error:
        return [Check(name, False, error.message)]


def parity(
    report: Report,
    target: Target,
    model: MergedModel,
    yardstick: Yardstick,
    merged: Scores | None,
    run: Run,
    merge_base: str | None,
) -> Check:
    """Score the artefact, fill the report's table and samples, and judge."""
    pairs: list[TokenPair] = yardstick.heldout.pairs
    with target.scorer(model, yardstick.context) as scorer:
        exported = score(scorer, pairs, yardstick.tokens_kept)
        for (text, ids), answer in zip(yardstick.heldout.prompts, yardstick.answers, strict=False):
            own = scorer.generate(ids, yardstick.heldout.ends, SAMPLE_TOKENS)
            decode = yardstick.heldout.tokenizer.decode
            report.samples.append({"prompt": text, "trained": decode(answer), "exported": decode(own)})
    report.pairs = len(pairs)
    rows = {"base": yardstick.base, "trained": yardstick.trained, "merged": merged, "exported": exported}
    report.parity = {
        name: compare(scores, yardstick.trained, yardstick.base) for name, scores in rows.items() if scores is not None
    }
    row, against = report.parity["exported"], "the trained model"
    if merge_base != "trained" and merged is not None:
        # Into the original base the merge itself is not the trained policy; the file is held to the merge.
        row = {**row, **{key: compare(exported, merged, yardstick.base)[key] for key in ("kl", "kl_max", "top1")}}
        against = "the merged weights"
    elif merge_base != "trained":
        return Check(PARITY, True, describe(row, against))
    return judge(target.kind, limits_of(run), row, against)
