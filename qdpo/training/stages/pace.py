"""On a CPU: how long a run will take, said before its base is read, and samples that would take too long left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from qdpo import console, cpu
from qdpo.config.overrides import SET
from qdpo.config.resolve import Resolved
from qdpo.config.schema import SamplesSection
from qdpo.progress import clock
from qdpo.training.stages.state import RunState, total_steps
from qdpo.verdicts.rules import FEWEST_ANSWERS

if TYPE_CHECKING:
    from qdpo.data.pairs import TokenPair
    from qdpo.data.prepare import Prepared

SHARE = 0.1
"""Of a run's time, what samples may take that nobody has asked for."""
FEWEST_TOKENS = 16
"""Of an answer; a shorter one shows nothing."""

FORWARD, WITH_BACKWARD = 2.0, 4.0
"""Operations per weight and token: the base is frozen, so that only the gradient of the activations is computed."""


def say_pace(run: RunState, resolved: Resolved, data: Prepared, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Say how long a run on a CPU will take, by a measurement; shorten or leave out samples that nobody has asked for.

    Of a small model nothing is said or changed.

    Args:
        run: whose samples are left out where they would take too long.
        resolved: says what was asked for.
        data: whose tokens are counted.
        shapes: of the base's tensors.
    """
    weights = sum(math.prod(shape) for name, shape in shapes.items() if len(shape) > 1 and "embed" not in name)
    if run.device.kind != "cpu" or 2 * weights < cpu.ENOUGH_BYTES:
        return
    half = run.config.model.dtype == "bfloat16" or (run.config.model.dtype == "auto" and cpu.choose_bf16(None)[0])
    speed = cpu.layer_flops()[1 if half else 0]
    evaluations = 2 + total_steps(run.config, len(data.train)) // run.config.train.eval_every
    seconds = weights * operations(run, data, evaluations) / speed
    samples, answers = run.config.samples, 0.0
    if samples.count or samples.prompts:

        def cost(rows: int, tokens: int) -> float:
            """Seconds of answers: the base gives them once more; every token reads all weights."""
            each = weights * max(cpu.decoding_seconds(half=half), rows * FORWARD / speed)
            return (evaluations + 1) * tokens * each

        answers = fit_samples(run, resolved, cost, seconds)
    console.note(
        f"computing on the CPU ({speed / 1e9:,.0f} GFLOP/s in a 4-bit layer, measured now): about "
        f"{clock(seconds + answers)} for the whole run; Ctrl-C stops and saves it, --resume goes on, "
        "--set train.max_steps=N makes it shorter"
    )


def operations(run: RunState, data: Prepared, evaluations: int) -> float:
    """Operations of a run's passes per weight of its base."""
    each = run.config.train.pairs_per_step
    steps = total_steps(run.config, len(data.train))
    trained = steps * each * _tokens(data.train) / max(len(data.train), 1)
    seen = min(steps * each, len(data.train)) * _tokens(data.train) / max(len(data.train), 1)
    heldout = _tokens(data.heldout) + sum(map(len, data.text))
    return WITH_BACKWARD * trained + FORWARD * (seen + _tokens(data.heldout) + evaluations * heldout)


def fit_samples(run: RunState, resolved: Resolved, cost: Callable[[int, int], float], seconds: float) -> float:
    """Fewer, shorter or no samples of a run where they would take more than their share.

    Args:
        run: gets other settings.
        resolved: says what was asked for, which stays.
        cost: seconds of so many prompts, answered by so many tokens, in all of the run.
        seconds: of the rest of the run.

    Returns:
        Seconds of those that are left.
    """
    samples = run.config.samples
    rows, tokens = len(samples.prompts) or samples.count, samples.max_new_tokens
    # a run that goes on has all its settings from a file; what is not the default was asked for once
    asked = samples != SamplesSection() or SET in {resolved.origins[f"samples.{name}"] for name in vars(samples)}
    answers = cost(rows, tokens)
    if answers <= SHARE * seconds or asked:
        return answers
    fewer = min(rows, FEWEST_ANSWERS)
    shorter = min(tokens, int(SHARE * seconds / cost(fewer, 1)))
    if shorter < FEWEST_TOKENS:
        changes, left = {"count": 0}, "there are none in this run"
    else:
        changes, left = {"count": fewer, "max_new_tokens": shorter}, f"there are {fewer} of up to {shorter} tokens"
    console.note(
        f"samples: {rows} answers of {tokens} tokens at each evaluation would take about {clock(answers)} on this CPU, "
        f"so {left}; --set samples.count={rows} asks for them"
    )
    run.config = run.config.model_copy(update={"samples": samples.model_copy(update=changes)})
    return 0.0 if "max_new_tokens" not in changes else cost(fewer, shorter)


def _tokens(pairs: Sequence[TokenPair]) -> float:
    """Packed tokens of all pairs."""
    from qdpo.engine.layout import packed_tokens

    return sum(map(packed_tokens, pairs))
