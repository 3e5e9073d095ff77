"""`qdpo verify`: all checks on all artefacts of an export."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qdpo.config.schema import VerifySection
from qdpo.console import say
from qdpo.errors import DiskError, InputMissingError, MemoryShortageError, QdpoError, UsageError
from qdpo.export.formats import targets_of
from qdpo.export.moments import moments_of_run
from qdpo.export.output import RECORD, stamped
from qdpo.export.pairs import read_heldout
from qdpo.export.source import MergeBase, TrainedRun, load_run
from qdpo.export.verify.adapter_target import AdapterTarget
from qdpo.export.verify.answers import compare_answers
from qdpo.export.verify.bench import Bench, why_not_streamed
from qdpo.export.verify.checks import Check, check_integrity
from qdpo.export.verify.measures import divergence, preference, text_change
from qdpo.export.verify.need import explained_shortage, require_memory, tell
from qdpo.export.verify.parity import limits_of, row, score
from qdpo.export.verify.projection import Projection
from qdpo.export.verify.report import SCHEMA, Report, card_section
from qdpo.export.verify.room import Room
from qdpo.export.verify.scorers import Scorer
from qdpo.export.verify.target import Target
from qdpo.export.verify.tokens import check_tokens
from qdpo.export.verify.verdict import (
    judge_answers,
    judge_divergence,
    judge_preference,
    judge_projection,
    overall,
    report_floor,
    report_text,
)
from qdpo.export.verify.yardstick import Yardstick, measure, too_slow
from qdpo.files import STAGING_PREFIX, atomic_write, read_json, scratch_folder, write_json
from qdpo.hardware import find_device, is_out_of_memory
from qdpo.libraries import quiet_libraries
from qdpo.model.adapter import ADAPTER_CONFIG
from qdpo.model.merged import MergedModel
from qdpo.run.folder import reopen
from qdpo.run.trained import adapter_of

ADAPTER_ALONE = "give --engine vllm --engine-python ENV/bin/python, or verify an export"


def verify_export(
    folder: Path, run_folder: Path | None = None, pairs: int | None = None, vllm: Path | None = None
) -> dict[str, Any]:
    """Check an export and write its verify.json and card section.

    Args:
        folder: the export; with `vllm` also the adapter of a run, scored on the 16-bit base, and nothing is written.
        run_folder: the run that it came from; None looks above the folder.
        pairs: how many held-out pairs are scored; None takes the run's `verify.pairs`.
        vllm: a Python whose vLLM scores the export; None leaves it to the engine that it is made for.

    Returns:
        what verify.json holds; `verdict` is the worst of its artefacts'.

    Raises:
        InputMissingError: it is no export, or its run is not found.
    """
    quiet_libraries()
    # A run's adapter is no export, and nothing is written into its folder.
    alone = (folder / ADAPTER_CONFIG).is_file() and not (folder / RECORD).is_file()
    if alone and vllm is None:
        raise UsageError(f"{folder} is an adapter, which is scored by vLLM", ADAPTER_ALONE)
    record: dict[str, Any] = {"format": "adapter"} if alone else read_json(folder / RECORD)
    run_folder = run_folder or find_run(folder)
    require_memory(run_folder)
    integrity = check_integrity(folder)
    run = load_run(run_folder, as_trained=True)
    if not integrity.passed:
        # A damaged artefact is not opened: what it gives would be neither here nor there.
        reports = [Report(folder.name, str(record["format"]), [integrity])]
    else:
        reports = []
        targets: list[Target] = [AdapterTarget.of_run(run)] if alone else targets_of(folder, record, run)
        if vllm and not all(target.in_vllm for target in targets):
            raise UsageError(f"vLLM does not load {record['format']}", "verify without --engine: llama.cpp scores it")
        merge_base: MergeBase = record.get("merge_base") or "original"
        model = run.merged(merge_base)
        scratch = folder.with_name(f"{STAGING_PREFIX}{folder.name}-verify-{os.getpid()}")
        with explained_shortage():
            work = prepare(run, folder, model, merge_base, targets, pairs, vllm)
            for target in targets:
                say(f"verifying {target.name} ...")
                with scratch_folder(scratch):
                    reports.append(examine(target, scratch, model, work))
                reports[-1].checks.insert(0, integrity)
    verdict = stamped() | {
        "schema": SCHEMA,
        "format": record["format"],
        "merge_base": record.get("merge_base"),
        "verdict": overall([report.verdict for report in reports]),
        "artefacts": [report.record() for report in reports],
    }
    if not alone:
        write_json(folder / "verify.json", verdict)
        atomic_write(folder / "README.md", card_section(verdict))
    for report in reports:
        report.show()
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


SHOWN = 3
"""Greedy answers that are shown."""


@dataclass(frozen=True)
class Work:
    """What all artefacts of an export are scored with.

    Attributes:
        bench: where they are scored.
        yardstick: what they are measured against.
        settings: the run's.
    """

    bench: Bench
    yardstick: Yardstick
    settings: VerifySection


def prepare(
    run: TrainedRun,
    folder: Path,
    model: MergedModel,
    merge_base: MergeBase,
    targets: list[Target],
    pairs: int | None,
    vllm: Path | None,
) -> Work | str:
    """Score what the artefacts are measured against; the reason where that is impossible.

    Args:
        run: what they were made from.
        folder: of the export.
        model: what they should hold.
        merge_base: which base it is merged into.
        targets: the artefacts.
        pairs: how many held-out pairs are scored; None takes the run's `verify.pairs`.
        vllm: a Python whose vLLM scores the export; None leaves it to the engine that it is made for.
    """
    try:
        config = reopen(run.folder).config
        adapter_of(run.folder)
        heldout = read_heldout(run, pairs or limits_of(run).pairs)
        bench = Bench(
            Room(folder),
            find_device().torch,
            heldout.longest + config.verify.answer_tokens,
            why_not_streamed(model, config.model.attn_implementation),
            vllm,
        )
        needed = require_memory(run.folder, whole=bench.not_streamed is not None)
        tell(model, heldout, (2 if merge_base == "trained" else 3) + 2 * len(targets), bench.device, needed)
        return Work(bench, measure(run, config, heldout, bench, merge_base), config.verify)
    except (MemoryShortageError, DiskError):
        raise
    except QdpoError as error:
        return error.message


def examine(target: Target, scratch: Path, model: MergedModel, work: Work | str) -> Report:
    """All checks on one artefact but its bytes, and all measures.

    Args:
        target: the artefact.
        scratch: an empty folder for the same export of the bare base.
        model: what it should hold.
        work: what it is scored with, or why it cannot be.
    """
    report = Report(target.name, target.kind)
    limits = limits_of(target.run)
    twin: Target | str
    try:
        twin = target.twin(scratch)
    except (MemoryShortageError, DiskError):
        raise
    except QdpoError as error:
        twin = f"the same export of the bare base cannot be made here: {error.message}"
    projection = Projection(moments_of_run(target.run))
    beside = None if isinstance(twin, str) else twin
    report.checks += guarded("read-back", lambda: target.read_back(model, beside, projection))
    heldout = None if isinstance(work, str) else work.yardstick.heldout
    report.checks += guarded("same tokens", lambda: [check_tokens(target, heldout)])
    if isinstance(twin, str):
        report.checks.append(Check("measures", None, twin))
        return report
    found = projection.record()
    report.take("projection", found, judge_projection(found, limits))
    if isinstance(work, str):
        report.checks.append(Check("scores", None, work))
        return report
    if work.bench.vllm is None:
        report.checks += guarded("engine", target.not_run)
    report.checks += guarded("scores", lambda: measure_one(report, target, twin, model, work))
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


def measure_one(report: Report, target: Target, twin: Target, model: MergedModel, work: Work) -> list[Check]:
    """Score an artefact and the same export of the bare base, and fill the report; what could not be run."""
    yardstick, settings, room = work.yardstick, work.settings, work.bench.room
    heldout, kept = yardstick.heldout, yardstick.tokens_kept
    with twin.scorer(target.bare_model(), work.bench) as scorer:
        rounded = score(scorer, heldout, kept, room)
        rounded_answers = _answers(scorer, yardstick, settings)
    with target.scorer(model, work.bench) as scorer:
        exported = score(scorer, heldout, kept, room)
        answers = _answers(scorer, yardstick, settings)
    base, policy = yardstick.base, yardstick.policy
    report.pairs = len(heldout.pairs)
    rows = {
        "base": (base, base),
        "trained": (yardstick.trained or policy, None if yardstick.trained else base),
        "merged": (policy if yardstick.trained else None, base),
        "rounded base": (rounded, rounded),
        "exported": (exported, rounded),
    }
    tokens = sum(len(ids) - 1 for ids in heldout.texts)
    report.parity = {
        name: row(scores, zero, policy, tokens) for name, (scores, zero) in rows.items() if scores is not None
    }
    apart = divergence(policy, exported, base, rounded, heldout.pairs, kept)
    report.take("divergence", asdict(apart), judge_divergence(apart, target.kind, settings))
    liked = preference(exported.margins - rounded.margins, policy.margins - base.margins)
    report.take("preference", None if liked is None else asdict(liked), judge_preference(liked))
    if (text := text_change(exported, policy, heldout.texts)) is not None:
        report.take("text", asdict(text), report_text(text))
    if yardstick.floor is not None:
        report.take("floor", asdict(yardstick.floor), report_floor(yardstick.floor))
    if isinstance(answers, str):
        return [Check("answers", None, answers)]
    if answers:
        assert not isinstance(yardstick.answers, str)
        beside = None if isinstance(rounded_answers, str) else rounded_answers
        looked = compare_answers(yardstick.answers, answers, beside, settings.answer_tokens)
        report.take("answers", looked.record(), judge_answers(looked))
        decode = heldout.tokenizer.decode
        report.samples += [
            {"prompt": text, "trained": decode(own), "exported": decode(new)}
            for (text, _), own, new in zip(heldout.prompts[:SHOWN], yardstick.answers, answers, strict=False)
        ]
    return []


def _answers(scorer: Scorer, yardstick: Yardstick, settings: VerifySection) -> list[list[int]] | str:
    """Greedy answers to the first prompts, or why there are none."""
    if isinstance(yardstick.answers, str):
        return yardstick.answers
    prompts = [ids for _, ids in yardstick.heldout.prompts[: settings.answers]]
    seconds = scorer.writing_seconds(prompts, settings.answer_tokens)
    return too_slow("the export", seconds, len(prompts), settings.answer_tokens) or scorer.generate(
        prompts, yardstick.heldout.ends, settings.answer_tokens
    )
