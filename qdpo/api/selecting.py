"""A part of a large set of pairs, written as a file of the set's own form."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdpo.api.config import Config, Overrides, texts_of
from qdpo.api.process import borrowed
from qdpo.config.replace import elsewhere
from qdpo.data.files import subset
from qdpo.errors import OutputError, UsageError
from qdpo.files import write_json
from qdpo.pairing.measure import Measured, file_of, measure
from qdpo.pairing.select import ASKS, Selection, check, select
from qdpo.pairing.select_report import as_dict
from qdpo.paths import check_file
from qdpo.run import folder as run_folder
from qdpo.run import trained

READS = (
    "data.columns",
    "data.format",
    "data.ignore",
    "data.special_text",
    "data.ties",
    "data.system",
    "data.template",
    "data.max_length",
    "data.max_prompt_length",
    "model.",
    "packing.",
)
"""Settings, or sections, that choosing reads."""


def select_pairs(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    by: Sequence[str] = (),
    *,
    keep: float | int | None = None,
    model: str | None = None,
    run: str | None = None,
    report: str | os.PathLike[str] | None = None,
    overrides: Overrides = None,
    seed: int = 0,
) -> Selection:
    """Choose a part of a file of pairs, and write it.

    >>> import qdpo
    >>> part = qdpo.select_pairs("quickstart", "part.jsonl", ["length"], keep=0.1)  # doctest: +SKIP
    >>> part.counts  # doctest: +SKIP
    {'ranked lower': 1069}

    Args:
        data: the file, of any form that a run reads, or `quickstart`.
        out: the new file, in the same form; its rows are the file's own, in their order.
        by: of `qdpo.pairing.select.CRITERIA`; none chooses by scores where there are some, and by the run's margin too
            where one is given, as in arXiv 2502.14560.
        keep: a share (a fraction up to 1.0), or how many pairs (an int); None keeps 0.3, or everything where only
            `duplicates` are left out.
        model: the base that `base` and `hard` ask: hub name or local folder.
        run: the run directory that `run` and `new` ask; its base serves `base` and `hard` too.
        report: a new JSON file that says of each row that is left out why.
        overrides: settings that say how rows and model are read, by their dotted key.
        seed: breaks ties.

    Raises:
        UsageError: criteria, or what they need, are missing or contradict each other.
        QdpoError: the file or the model cannot be read, or a new file cannot be written.
    """
    place, target = file_of(os.fspath(data)), Path(out)
    subset.check_name(place, target)
    if report is not None:
        _check_report(Path(report), target, place)
    if seed < 0:
        raise UsageError(f"--seed {seed} is below 0", "give a number from 0")
    chosen = check(by)
    _check_needs(chosen, model, run)
    settings = texts_of(overrides)
    _check_overrides(settings, run)
    with borrowed():
        folder = run_folder.existing(run) if run is not None else None
        config = _config(place, model, folder, settings)
        asked = chosen or (("run",) if folder is not None else ())
        margins = {ASKS[name] for name in asked if name in ASKS}
        adapter = trained.adapter_of(folder) if folder is not None and "run" in margins else None
        measured = measure(config, margins, adapter, twins="duplicates" in chosen)
        selection = select(measured, chosen or _usual(measured, asked), keep, seed)
    subset.write_rows(place, selection.rows.tolist(), target)
    if report is not None:
        write_json(Path(report), as_dict(selection, os.fspath(data), str(target), seed))
    return selection


def _check_report(report: Path, out: Path, data: Path) -> None:
    """Refuse a report in the place of the rows.

    Raises:
        OutputError: they are one file, or the report can have no file.
    """
    if report.absolute() == out.absolute():
        raise OutputError(f"--report {report} is the file of the pairs", "give it another name")
    check_file(report, [data])


def _check_needs(by: Sequence[str], model: str | None, run: Any) -> None:
    """Refuse criteria without what they ask, and a model that none asks.

    Raises:
        UsageError: says which.
    """
    if model is not None and run is not None:
        raise UsageError("--model and --run are two models", "a run brings its base: leave --model out")
    asking = [name for name in by if name in ("base", "hard")]
    if asking and model is None and run is None:
        raise UsageError(f"`{asking[0]}` asks a base model", "name it: --model PATH or hub name, or --run DIR")
    learned = [name for name in by if name in ("run", "new")]
    if learned and run is None:
        raise UsageError(
            f"`{learned[0]}` asks a run: what a policy has learned over its base",
            "name one: --run DIR; a short run on a part of the pairs will do",
        )
    if by and model is not None and not asking:
        raise UsageError("--model is given, and no criterion asks it", "add --by base or --by hard, or leave it out")
    if by and run is not None and not asking and not learned:
        raise UsageError("--run is given, and no criterion asks it", "add --by run or --by new, or leave it out")


def _check_overrides(overrides: Sequence[str], run: str | None) -> None:
    """Refuse a setting that choosing does not read.

    Raises:
        UsageError: says which.
    """
    for text in overrides:
        key = text.partition("=")[0].strip()
        if not key.startswith(READS):
            raise UsageError(f"--set {text}: choosing reads no such setting", f"it reads {', '.join(READS)}")
        if key.startswith("model.") and run is not None:
            raise UsageError(f"--set {text}: a run's model is what was trained", "leave it out")


def _usual(measured: Measured, asked: Sequence[str]) -> tuple[str, ...]:
    """The criteria of the paper, as far as there is what they need.

    Raises:
        UsageError: there is nothing.
    """
    scored = ("score",) if (measured.scores == measured.scores).any() else ()
    if not scored and not asked:
        raise UsageError(
            f"by what? {measured.source} has no scores",
            "for example --by length, or --by base --model PATH; `qdpo pairs select --help` has all criteria",
        )
    return (*scored, *asked)


def _config(place: Path, model: str | None, run: Path | None, overrides: Sequence[str]) -> Config:
    """How rows and model are read: as the run did, or by what holds for any, then by the overrides."""
    if run is not None:
        config = Config.load(run / run_folder.CONFIG, [*elsewhere(None, str(place)), *overrides])
        found = trained.where_it_lies(config.model, run)
        return config.change({"model.name": found.name, "model.revision": found.revision})
    return Config.load("dpo", overrides, model=model or "quickstart", data=str(place))
