"""What an export must reach to count as good."""

from __future__ import annotations

from typing import Any

from qdpo.export.verify.checks import Check

# Mean KL(trained || artefact), nats per token, by precision.
KL_LIMITS = {
    "float32": 1e-4,
    "float16": 1e-4,
    "bfloat16": 5e-4,
    "f32": 1e-4,
    "f16": 1e-4,
    "bf16": 5e-4,
    "q8_0": 2e-3,
}
# Share of the trained margin that must survive, where a limit is set; the quickstart's only, because how much a low
# precision costs depends on the model: for other runs the figure is published instead.
MARGIN_LIMITS = {"q4_k_m": 0.9, "awq": 0.9}
DEMONSTRATION = "quickstart"


def judge(kind: str, base: str, row: dict[str, Any], against: str) -> Check:
    """Hold a parity row against the limits.

    Args:
        kind: precision of the artefact.
        base: name of the base model.
        row: what `parity.compare` gave.
        against: what the KL was measured against.
    """
    kept = "no trained margin" if row["margin_kept"] is None else f"{row['margin_kept']:.1%} of the margin kept"
    accuracy = "ties" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
    told = (
        f"KL {row['kl']:.2g} nats a token against {against}, top-1 {row['top1']:.1%}, accuracy {accuracy}, "
        f"{kept}, by {row['engine']}"
    )
    failures = []
    limit = KL_LIMITS.get(kind)
    if limit is not None and not row["kl"] <= limit:
        failures.append(f"the KL limit of {kind} is {limit:g}")
    least = MARGIN_LIMITS.get(kind) if base == DEMONSTRATION else None
    if least is not None and row["margin_kept"] is not None and not row["margin_kept"] >= least:
        failures.append(f"{least:.0%} of the margin must be kept")
    if failures:
        return Check("preference parity", False, f"{told}; {'; '.join(failures)}")
    without = limit is None and least is None
    return Check("preference parity", True, told + (" (no limit for this precision)" if without else ""))
