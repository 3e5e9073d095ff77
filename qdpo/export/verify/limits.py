"""Holding a parity row against the limits of the run's preset (`verify` in the configuration)."""

from __future__ import annotations

from typing import Any

from qdpo.config.schema import VerifySection
from qdpo.errors import QdpoError
from qdpo.export.source import Run
from qdpo.export.verify.checks import Check


def limits_of(run: Run) -> VerifySection:
    """The run's limits; the schema's own where its configuration cannot be read."""
    from qdpo.run import folder as run_folder

    try:
        return run_folder.reopen(run.folder).config.verify
    except QdpoError:
        return VerifySection()


def judge(kind: str, limits: VerifySection, row: dict[str, Any], against: str) -> Check:
    """Hold a parity row against the limits.

    Args:
        kind: precision of the artefact.
        limits: of the run.
        row: what `parity.compare` gave.
        against: what the KL was measured against.
    """
    told = describe(row, against)
    failures = []
    limit, least = limits.max_kl.get(kind), limits.min_margin_kept.get(kind)
    if limit is not None and not row["kl"] <= limit:
        failures.append(f"the KL limit of {kind} is {limit:g}")
    if least is not None and row["margin_kept"] is not None and not row["margin_kept"] >= least:
        failures.append(f"{least:.0%} of the margin must be kept")
    if failures:
        return Check("preference parity", False, f"{told}; {'; '.join(failures)}")
    without = limit is None and least is None
    return Check("preference parity", True, told + (" (no limit for this precision)" if without else ""))


def describe(row: dict[str, Any], against: str) -> str:
    """A parity row as a sentence."""
    kept = "no trained margin" if row["margin_kept"] is None else f"{row['margin_kept']:.1%} of the margin kept"
    accuracy = "ties" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
    return (
        f"KL {row['kl']:.2g} nats a token against {against}, top-1 {row['top1']:.1%}, accuracy {accuracy}, "
        f"{kept}, by {row['engine']}"
    )
