"""What was measured on an artefact, held against what an export must keep.

The gates are the projection of the file's change on the adapter's, and the divergence from the policy: both are the
same whichever pairs happen to be held out, or nearly so. The preference is what one wants to know, and few pairs say
little about it; it condemns an artefact only where its whole interval does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qdpo.config.schema import VerifySection
from qdpo.evaluation.statistics import Estimate
from qdpo.export.verify.answers import Answers
from qdpo.export.verify.checks import Check
from qdpo.export.verify.measures import FEWEST, TOLD, Divergence, Floor, Preference, Text
from qdpo.grammar import counted

Result = Literal["passed", "lost", "cannot be told", "reported"]
Verdict = Literal["passed", "lost", "cannot be told", "failed"]

PREFERENCE = "preference kept"
LEAST_PREFERENCE = 0.8
WIDEST = 0.5
"""An artefact is lost when the whole interval of its slope lies below the one, unless it is wider than from 0 to 1."""

TIMES_BASE = 2.0
OF_MOVED = 0.01
FREE_KL = 1e-3
"""Without a limit of its own, a divergence may be this many times that of the base's own rounding, this share of what
training has moved (an adapter cut in half would leave a quarter), or this small."""

WAY_OUT = (
    "round with error feedback (--rounding feedback), take more bits (--quant f16, --dtype float32), or the adapter "
    "alone beside a GGUF of the base (--format gguf-lora); --pick looks for the smallest type that keeps it"
)


@dataclass(frozen=True)
class Finding:
    """One line of what was measured.

    Attributes:
        name: what.
        result: what follows from it; `reported` is what no limit is laid on.
        detail: the figures, with what they mean.
    """

    name: str
    result: Result
    detail: str


def judge_projection(found: dict[str, Any] | None, limits: VerifySection) -> Finding:
    """Hold `Projection.record` against the run's limit, which it may miss on neither side."""
    name, least = "adapter in the weights", limits.min_projection
    if found is None:
        return Finding(name, "cannot be told", "the adapter changes nothing that could be compared")
    where = "in the metric of the layers' inputs" if found["metric"] == "inputs" else "plain, all weights alike"
    worst = ", ".join(f"{one['name'].removesuffix('.weight')} {one['value']:.2f}" for one in found["worst"][:2])
    detail = (
        f"projection {_share(Estimate(found['value'], found['low'], found['high']))} over {found['tensors']} tensors, "
        f"{where} (1: all of the change, 0: none); farthest from 1: {worst}"
    )
    if found["left_out"]:
        detail += f"; {found['left_out']} changed tensors without moments are left out"
    if not least <= found["value"] <= 2 - least:
        return Finding(name, "lost", f"{detail}; it must lie in {least:g} .. {2 - least:g}")
    low, high = (found["value"] if end is None else end for end in (found["low"], found["high"]))
    slack = 2 * (1 - least)
    if 1 - slack <= low and high <= 1 + slack:
        return Finding(name, "passed", detail)
    return Finding(
        name,
        "cannot be told",
        f"{detail}; tensors differ so much that the interval leaves {1 - slack:g} .. {1 + slack:g}",
    )


def judge_divergence(found: Divergence, kind: str, limits: VerifySection) -> Finding:
    """Hold a divergence against the limit of the artefact's precision, or else against the rounding of its base."""
    detail = (
        f"KL {_figure(found.total)} nats a token over {found.tokens:,} tokens (0: the same predictions); the rounding "
        f"of the base alone costs {found.base.value:.2g}, the rest is {_figure(found.rest, '+')}; training has moved "
        f"{found.moved.value:.2g}"
    )
    limit = limits.max_kl.get(kind)
    allowed = limit if limit is not None else max(FREE_KL, TIMES_BASE * found.base.value, OF_MOVED * found.moved.value)
    if found.total.value <= allowed:
        return Finding("divergence", "passed", detail)
    why = (
        f"verify.max_kl of {kind}"
        if limit is not None
        else f"{TIMES_BASE:g} times the rounding of the base, {OF_MOVED:.0%} of moved"
    )
    return Finding("divergence", "lost", f"{detail}; at most {allowed:.2g} is allowed ({why})")


def judge_preference(found: Preference | None) -> Finding:
    """Say what pairs say about the preference, and no more."""
    if found is None:
        return Finding(PREFERENCE, "cannot be told", "the training has changed no margin of the held-out pairs")
    narrow = found.needed is not None and found.half_width is not None and found.half_width <= WIDEST
    if narrow and found.slope.high is not None and found.slope.high < LEAST_PREFERENCE:
        return Finding(PREFERENCE, "lost", f"{_preference(found)}; all of the interval is below {LEAST_PREFERENCE:g}")
    if not found.told:
        if found.needed is None:
            return Finding(PREFERENCE, "cannot be told", f"from {_pairs(found.pairs)}; at least {FEWEST} are needed")
        needed = f"about {_rounded(found.needed)} are needed for +-{TOLD:g}"
        return Finding(PREFERENCE, "cannot be told", f"from {_pairs(found.pairs)} (+-{found.half_width:.2f}); {needed}")
    return Finding(PREFERENCE, "reported", _preference(found))


def _preference(found: Preference) -> str:
    return (
        f"slope {_share(found.slope)}, share {_share(found.share)} of what training gained on {_pairs(found.pairs)}, "
        "against the same rounding of the bare base (1: all, 0: none)"
    )


def judge_answers(found: Answers) -> Finding:
    """Say how greedy answers end; more loops than chance would have are a loss."""
    trained, exported, rounded = found.loops
    beside = "" if rounded is None else f", {rounded} of the bare base's in this precision"
    detail = (
        f"of {found.prompts} greedy answers of up to {found.tokens} tokens, {exported} run in circles ({trained} of "
        f"the trained model's{beside}), {found.breaks[0]} break off early"
    )
    return Finding("answers", "lost" if found.lost else "reported", detail)


def report_text(found: Text) -> Finding:
    """Say what became of plain text."""
    return Finding(
        "plain text",
        "reported",
        f"{_figure(found.change, '+')} nats a token on {found.texts} texts that are not the run's ({found.tokens:,} "
        f"tokens; {found.policy:.3f} before the rounding; 0: no change)",
    )


def report_floor(found: Floor) -> Finding:
    """Say how much noise the training's own type has."""
    return Finding(
        "noise floor",
        "reported",
        f"{found.dtype}, which was trained in, moves a margin by {found.margin:.2g} nats (root mean square, "
        f"{_pairs(found.pairs)}; training moved it by {found.trained:.2g}) and the predictions by KL {found.kl:.2g}, "
        "beside float32",
    )


def verdict_of(checks: Iterable[Check], findings: Iterable[Finding]) -> Verdict:
    """The verdict on an artefact.

    A failed check is `failed`, whatever was measured; then a loss is a loss; then both gates must have passed.
    """
    results = {finding.name: finding.result for finding in findings}
    if any(check.passed is False for check in checks):
        return "failed"
    if "lost" in results.values():
        return "lost"
    gates = [results.get(name) for name in ("adapter in the weights", "divergence")]
    return "passed" if gates == ["passed", "passed"] else "cannot be told"


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst of several verdicts."""
    order: tuple[Verdict, ...] = ("failed", "lost", "cannot be told", "passed")
    return min(verdicts, key=order.index)


def _share(found: Estimate) -> str:
    interval = "" if found.low is None else f" [{found.low:.2f}, {found.high:.2f}]"
    return f"{found.value:.3f}{interval}"


def _figure(found: Estimate, sign: str = "") -> str:
    interval = "" if found.low is None else f" [{found.low:{sign}.2g}, {found.high:{sign}.2g}]"
    return f"{found.value:{sign}.2g}{interval}"


def _pairs(count: int) -> str:
    return counted(count, "pair")


def _rounded(count: int) -> str:
    """A number of pairs to two digits."""
    digits = max(len(str(count)) - 2, 0)
    return f"{round(count, -digits):,}"
