"""`qdpo verify`: all checks on all artefacts of an export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdpo.console import say, warn
from qdpo.errors import DiskError, InputMissingError, MemoryShortageError, QdpoError
from qdpo.export.formats import targets_of
from qdpo.export.output import RECORD, stamped
from qdpo.export.pairs import read_heldout
from qdpo.export.source import MergeBase, TrainedRun, load_run
from qdpo.export.verify.bench import Bench, why_not_streamed
from qdpo.export.verify.checks import Check, check_integrity
from qdpo.export.verify.need import explained_shortage, require_memory, tell
from qdpo.export.verify.parity import PARITY, Scores, compare, describe, judge, limits_of, score
from qdpo.export.verify.report import Report, card_section
from qdpo.export.verify.room import Room
from qdpo.export.verify.target import Target
from qdpo.export.verify.tokens import check_tokens
from qdpo.export.verify.yardstick import SAMPLE_TOKENS, SAMPLES, Yardstick, measure, too_slow
from qdpo.files import atomic_write, read_json, write_json
from qdpo.hardware import find_device, is_out_of_memory
from qdpo.libraries import quiet_libraries
from qdpo.model.merged import MergedModel
from qdpo.run.folder import reopen
from qdpo.run.trained import adapter_of


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
    run_folder = run_folder or find_run(folder)
    require_memory(run_folder)
    integrity = check_integrity(folder)
    run = load_run(run_folder, as_trained=True)
    if not integrity.passed:
        # A damaged artefact is not opened: what it gives would be neither here nor there.
        reports = [Report(folder.name, str(record["format"]), [integrity])]
    else:
        reports = []
        targets = targets_of(folder, record, run)
        merge_base: MergeBase = record.get("merge_base") or "original"
        model = run.merged(merge_base)
        with explained_shortage():
            work = prepare(run, folder, model, merge_base, targets, pairs)
            for target in targets:
                say(f"verifying {target.name} ...")
                reports.append(examine(target, model, work))
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


@dataclass(frozen=True)
class Work:
    """What all artefacts of an export are scored with.

    Attributes:
        bench: where they are scored.
        yardstick: what they are measured against.
    """

    bench: Bench
    yardstick: Yardstick


def prepare(
    run: TrainedRun, folder: Path, model: MergedModel, merge_base: MergeBase, targets: list[Target], pairs: int | None
) -> Work | str:
    """Score what the artefacts are measured against; the reason where that is impossible.

    Args:
        run: what they were made from.
        folder: of the export.
        model: what they should hold.
        merge_base: which base it is merged into.
        targets: the artefacts.
        pairs: how many held-out pairs are scored; None takes the run's `verify.pairs`.
    """
    try:
        config = reopen(run.folder).config
        adapter_of(run.folder)
        heldout = read_heldout(run, pairs or limits_of(run).pairs)
        bench = Bench(
            Room(folder),
            find_device().torch,
            heldout.longest + SAMPLE_TOKENS,
            why_not_streamed(model, config.model.attn_implementation),
        )
        needed = require_memory(run.folder, whole=bench.not_streamed is not None)
        merged = None if all(target.is_the_merge for target in targets) else model
        tell(model, heldout, 2 + (merged is not None) + len(targets), bench.device, needed)
        return Work(bench, measure(run, config, heldout, bench, merged, merge_base))
    except (MemoryShortageError, DiskError):
        raise
    except QdpoError as error:
        return error.message


def examine(target: Target, model: MergedModel, work: Work | str) -> Report:
    """All checks on one artefact but its bytes.

    Args:
        target: the artefact.
        model: what it should hold.
        work: what it is scored with, or why it cannot be.
    """
    report = Report(target.name, target.kind)
    report.checks += guarded("read-back", lambda: target.read_back(model))
    heldout = None if isinstance(work, str) else work.yardstick.heldout
    report.checks += guarded("same tokens", lambda: [check_tokens(target, heldout)])
    if isinstance(work, str):
        report.checks.append(Check(PARITY, None, work))
        return report
    report.checks += guarded("engine", target.not_run)
    report.checks += guarded(PARITY, lambda: check_parity(report, target, model, work))
    return report


def guarded(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    """The results of a check; an artefact that cannot even be opened has failed it."""
    try:
        return check()
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        return [Check(name, False, f"cannot be read: {type(error).__name__}: {str(error).splitlines()[0:1]}")]
    except (MemoryShortageError, DiskError):
        raise
    except QdpoError as error:
        return [Check(name, False, error.message)]


def check_parity(report: Report, target: Target, model: MergedModel, work: Work) -> list[Check]:
    """Score the artefact, fill the report's table and samples, and judge."""
    yardstick = work.yardstick
    heldout, checks = yardstick.heldout, []
    with target.scorer(model, work.bench) as scorer:
        exported = score(scorer, heldout.pairs, yardstick.tokens_kept, work.bench.room)
        prompts = [ids for _, ids in heldout.prompts[:SAMPLES]]
        left_out = too_slow("the export", scorer.writing_seconds(prompts, SAMPLE_TOKENS))
        if isinstance(yardstick.answers, str):
            left_out = yardstick.answers
        if left_out:
            checks.append(Check("sample answers", None, left_out))
        else:
            made = scorer.generate(prompts, heldout.ends, SAMPLE_TOKENS)
            decode = heldout.tokenizer.decode
            report.samples += [
                {"prompt": text, "trained": decode(answer), "exported": decode(own)}
                for (text, _), answer, own in zip(heldout.prompts, yardstick.answers, made, strict=False)
            ]
    report.pairs = len(heldout.pairs)
    rows = {"base": yardstick.base, "trained": yardstick.trained, "merged": yardstick.merged, "exported": exported}
    report.parity = {
        name: compare(scores, yardstick.trained, yardstick.base) for name, scores in rows.items() if scores is not None
    }
    return [*checks, _judged(report, target, exported, yardstick)]


def _judged(report: Report, target: Target, exported: Scores, yardstick: Yardstick) -> Check:
    row, against = report.parity["exported"], "the trained model"
    if target.merge_base != "trained":
        merged = yardstick.merged
        if merged is None:
            return Check(PARITY, True, describe(row, against))
        # Into the original base the merge itself is not the trained policy; the file is held to the merge.
        row = {**row, **{key: compare(exported, merged, yardstick.base)[key] for key in ("kl", "kl_max", "top1")}}
        against = "the merged weights"
    return judge(target.kind, limits_of(target.run), row, against)
