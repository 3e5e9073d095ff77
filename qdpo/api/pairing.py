"""Making preference pairs: from ratings, and from answers that a model writes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from qdpo.api.config import Overrides, texts_of
from qdpo.api.evaluating import Evaluation
from qdpo.api.process import borrowed
from qdpo.pairing.generate import Generated, generate, refuse_others
from qdpo.pairing.journal import Journal
from qdpo.pairing.pairs_file import refuse_existing, write_new
from qdpo.pairing.prompts import read_prompts
from qdpo.pairing.ranked import Ranked, rank
from qdpo.pairing.writing import By, Writing
from qdpo.paths import output_path
from qdpo.progress import waiting
from qdpo.run.folder import existing


def generate_answers(
    prompts: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: str | None = None,
    run: str | os.PathLike[str] | None = None,
    by: By | None = None,
    k: int = 2,
    seed: int = 42,
    temperature: float = 0.8,
    top_p: float = 0.95,
    max_new_tokens: int = 256,
    batch_size: int = 16,
    limit: int | None = None,
    overrides: Overrides = None,
    drop_bad_rows: bool = False,
) -> Generated:
    """Let a base or a run answer prompts, several times each; called again, it goes on where it was interrupted.

    Args:
        prompts: a text file with one in each line, rows with `prompt` or `messages`, or preference data.
        out: the file of answers (JSONL), on which `qdpo pairs vote` lets you vote.
        model: the base: hub name or local folder.
        run: a run directory instead.
        by: who answers: `base`, `run`, or `both` in turn; None takes the run where one is given.
        k: answers to each prompt.
        seed: of the sampling; an answer depends on it, its prompt and its number alone.
        temperature: 0 takes the likeliest token, above 0 samples.
        top_p: samples from the likeliest tokens that hold this much probability.
        max_new_tokens: tokens of an answer at the most.
        batch_size: answers that are written side by side.
        limit: prompts at the most.
        overrides: settings that change how the model is read (`model.`, `data.template`, `data.system`).
        drop_bad_rows: leave out prompts that are at fault, instead of an error.

    Returns:
        How many there are, and what was left out and why.

    Raises:
        UsageError: a value that cannot be.
        QdpoError: prompts or model cannot be had, or the file cannot be written.
    """
    place = output_path(out, "--out")
    writer: By = by or ("base" if run is None else "run")
    how = Writing(k, writer, seed, temperature, top_p, max_new_tokens, batch_size)
    with borrowed():
        asked = read_prompts(os.fspath(prompts), limit=limit, drop=drop_bad_rows)
        folder = None if run is None else existing(os.fspath(run))
        evaluation = Evaluation(run=folder, model=model, overrides=texts_of(overrides))
        with Journal.opened(place) as journal:
            refuse_others(journal, asdict(how))
            with waiting("loading the model"):
                subject = evaluation.writer()
            return generate(subject, asked, journal, how)


def pairs_from_ratings(
    ratings: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    all_pairs: bool = False,
    min_gap: float = 0.0,
    columns: Mapping[str, str] | None = None,
    drop_bad_rows: bool = False,
) -> Ranked:
    """Turn answers that people have rated into preference pairs, and write them to a new file (JSONL).

    Args:
        ratings: scores, thumbs (labels true and false), edits, or the votes of `qdpo pairs vote`: a local file or
            folder, or a hub dataset.
        out: the new file, which `qdpo.train(..., data=out)` takes.
        all_pairs: every answer against every one with a lower score, instead of the highest against the lowest.
        min_gap: scores of the two must differ by at least this much.
        columns: your own column for a name that qdpo knows, such as `{"score": "stars"}`.
        drop_bad_rows: leave out rows that are at fault, instead of an error.

    Returns:
        The pairs, and what was left out and why.

    Raises:
        DataError: rows are at fault, or no pair comes of them.
        OutputError: the file exists, or cannot be written.
        QdpoError: the ratings cannot be read.
    """
    place: Path = output_path(out, "--out")
    refuse_existing(place)
    ranked = rank(
        os.fspath(ratings), all_pairs=all_pairs, min_gap=min_gap, columns=dict(columns or {}), drop=drop_bad_rows
    )
    write_new(place, ranked.pairs)
    return ranked
