"""Evaluating pairs from beginning to end: load, score, summarise, write."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from qdpo import __version__, console
from qdpo.config.schema import RunConfig
from qdpo.data.files.readers import is_file_name
from qdpo.data.files.sources import find_source
from qdpo.evaluation import subject as subjects
from qdpo.evaluation.pairs import Chosen, heldout_pairs, pairs_of
from qdpo.evaluation.scoring import score_pairs
from qdpo.evaluation.subject import Subject
from qdpo.evaluation.summary import summarise
from qdpo.files import explained, write_json
from qdpo.progress import Progress, waiting
from qdpo.run.folder import HELDOUT, now
from qdpo.run.pairs import write_pairs


def evaluate_heldout(
    config: RunConfig, adapter: Path, limit: int | None = None, keep: Path | None = None
) -> dict[str, Any]:
    """Score a run's own held-out pairs; see `qdpo.evaluation.summary` for what is returned.

    Args:
        config: how model and pairs are read.
        adapter: the run's adapter.
        limit: pairs at the most.
        keep: the run directory in which every single pair's scores are kept for the report page; None keeps none.

    Raises:
        QdpoError: the adapter, its base or the data cannot be read.
    """
    wording = subjects.wording_of(config, adapter)
    chosen = heldout_pairs(config, wording.tokenizer, limit)
    with waiting("loading the model"):
        subject = subjects.load(config, adapter, wording)
    return _evaluate("heldout", subject, chosen, keep)


def evaluate_pairs(config: RunConfig, adapter: Path | None, limit: int | None = None) -> dict[str, Any]:
    """Score all pairs of `config.data.name` by a base, and by the base with an adapter.

    The pairs are read before the model is loaded, and whether there is such a file is asked before a tokenizer is
    downloaded.

    Raises:
        QdpoError: model, adapter or data cannot be read.
    """
    if is_file_name(config.data.name):
        find_source(config.data.name, split=config.data.split)
    wording = subjects.wording_of(config, adapter)
    chosen = pairs_of(config, wording.tokenizer, wording.template, limit)
    with waiting("loading the model"):
        subject = subjects.load(config, adapter, wording)
    return _evaluate("pairs", subject, chosen)


def _evaluate(kind: str, subject: Subject, chosen: Chosen, keep: Path | None = None) -> dict[str, Any]:
    config = subject.config
    with Progress("scoring", len(chosen.pairs), unit="pairs") as progress:
        scores = score_pairs(
            subject.engine,
            chosen.pairs,
            config.packing.tokens_without_grad,
            subject.base,
            subject.policy,
            progress.advance,
        )
    if keep is not None:
        policy, base = scores.policy.tolist(), scores.base.tolist()
        write_pairs(keep, chosen.pairs, policy, base, config.loss.beta, subject.tokenizer)
    return {
        "schema": 1,
        "kind": kind,
        "created": now(),
        "qdpo": __version__,
        "model": subject.about,
        "data": {
            "source": chosen.source,
            "pairs": len(chosen.pairs),
            "prompts": chosen.prompts,
            "fingerprint": chosen.fingerprint,
            "template": subject.template.origin,
        },
        **summarise(scores, config.loss.beta, adapted=subject.policy is not None),
    }


def file_name(pairs: str | None) -> str:
    """The name of the JSON file for a run's own held-out pairs (None), or for those of a file or dataset."""
    if pairs is None:
        return HELDOUT
    stem = Path(pairs).name.partition(".")[0] or Path(pairs).name
    return f"pairs-{re.sub(r'[^A-Za-z0-9_-]+', '-', stem).strip('-') or 'data'}.json"


def write(folder: Path, name: str, result: dict[str, Any]) -> Path:
    """Write a result whole or not at all, and say where.

    Raises:
        OutputError: the folder cannot be written to.
    """
    path = folder / name
    with explained(path):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    console.good(f"written to {path}")
    return path
