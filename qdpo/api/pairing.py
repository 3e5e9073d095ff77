"""Making preference pairs: from ratings, and from answers that a model writes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from qdpo.pairing.pairs_file import refuse_existing, write_new
from qdpo.pairing.ranked import Ranked, rank
from qdpo.paths import output_path


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
