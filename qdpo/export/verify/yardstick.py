"""What exports of a run are measured against: the base and the trained policy, scored in one pass."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import torch

from qdpo.config.schema import RunConfig
from qdpo.console import note
from qdpo.export.pairs import Heldout
from qdpo.export.source import MergeBase, TrainedRun
from qdpo.export.verify.bench import Bench, whole_scorer
from qdpo.export.verify.measures import Floor, noise_floor
from qdpo.export.verify.parity import Scores, collect, questions, score, tokens_to_keep
from qdpo.export.verify.scorers import TorchScorer
from qdpo.export.verify.streams import Reading, Voice, beside, continued, pass_through, read_anew, writing_seconds
from qdpo.export.whole import merged_model
from qdpo.hardware import choose_dtype, find_device
from qdpo.model.skeleton import AdapterSkeleton, skeleton
from qdpo.model.streamed import Streamed
from qdpo.progress import clock
from qdpo.run.trained import load_trained

ANSWER_SECONDS = 600.0
"""Greedy answers that would take longer are left out, and the report says so."""

FLOOR_PAIRS = 16
"""Pairs that the trained policy is scored on in the type that it was trained in."""


@dataclass(frozen=True)
class Yardstick:
    """What exports of a run are measured against: computed once, used for every artefact.

    Attributes:
        heldout: the pairs, and plain texts.
        base: scores of the base that the adapter is merged into.
        policy: scores of that base with the adapter, in float32: what an artefact would say if nothing were rounded.
        trained: scores of the trained policy, where the merge is into another base than it was trained on; else None.
        floor: the noise of the type that was trained in; None where that is float32, or was not measured.
        answers: the trained policy's greedy answers to the first prompts, or why there are none.
        tokens_kept: tokens of each completion whose distributions are compared.
    """

    heldout: Heldout
    base: Scores
    policy: Scores
    trained: Scores | None
    floor: Floor | None
    answers: list[list[int]] | str
    tokens_kept: int


def measure(run: TrainedRun, config: RunConfig, heldout: Heldout, bench: Bench, into: MergeBase) -> Yardstick:
    """Score the base, the policy and what else exports are measured against.

    Args:
        run: what they were made from.
        config: the run's.
        heldout: the pairs, and plain texts.
        bench: where they are scored.
        into: which base the adapter is merged into.

    Raises:
        InputMissingError: adapter and base do not belong together.
        QdpoError: one of them cannot be read.
    """
    if bench.not_streamed is not None:
        return _measure_whole(run, config, heldout, bench, into)
    base = run.base_as_trained()
    attention = config.model.attn_implementation
    exact = torch.float32

    plain = Streamed(skeleton(base.config, exact, attention), bench.device)
    engine = _engine(run)
    policy = _policy(run, base.config, engine, exact, attention, bench)
    own = trained_dtype(run, config)
    voices = {"trained": policy}
    if own != exact:
        voices["own type"] = _policy(run, base.config, engine, own, attention, bench)
        voices["own type"].first = 2 * FLOOR_PAIRS
    if into == "trained":
        voices["base"] = Voice(engine, plain)
    else:
        for name, model in (("base", run.without_adapter().merged(into)), ("merged", run.merged(into))):
            streamed = Streamed(skeleton(model.config, exact), bench.device)
            voices[name] = Voice("transformers", streamed, read_anew(model, streamed))

    asked, kept = questions(heldout), tokens_to_keep(heldout, int(base.config["vocab_size"]))
    reading = Reading(plain, base.names, base.read)
    what = f"scoring {', '.join(voices)} on {len(heldout.pairs)} pairs"
    scores = {}
    passing = pass_through(reading, list(voices.values()), asked, bench.room, what)
    for name, (voice, logits) in zip(voices, passing, strict=True):
        share = asked[: voice.first]
        scores[name] = collect(voice.engine, share, logits, min(len(heldout.pairs), len(share) // 2), kept, bench.room)

    merged = scores["trained" if into == "trained" else "merged"]
    floor = None
    if own != exact:
        floor = noise_floor(own, scores["own type"], scores["trained"], merged.margins - scores["base"].margins)
    prompts = [ids for _, ids in heldout.prompts[: config.verify.answers]]
    tokens = config.verify.answer_tokens
    answers: list[list[int]] | str
    if bench.device.type == "cuda":
        answers = _answers_in_memory(run, prompts, heldout.ends, tokens)
        _release()
    else:
        seconds = writing_seconds(policy, sum(len(one.ids) for one in asked), prompts, tokens)
        answers = too_slow("the trained model", seconds, len(prompts), tokens) or continued(
            policy.streamed, lambda part: policy.weights(part, reading(part)), prompts, heldout.ends, tokens
        )
    trained = None if into == "trained" else scores["trained"]
    return Yardstick(heldout, scores["base"], merged, trained, floor, answers, kept)


def _policy(
    run: TrainedRun, config: dict[str, Any], engine: str, dtype: torch.dtype, attention: str | None, bench: Bench
) -> Voice:
    """Base and adapter, each on its own, computed in a type."""
    adapter = AdapterSkeleton(skeleton(config, dtype, attention), run.adapter)
    streamed = Streamed(adapter.model, bench.device)
    return Voice(engine, streamed, beside(adapter, streamed))


def trained_dtype(run: TrainedRun, config: RunConfig) -> torch.dtype:
    """The type that the run was trained in: as it was recorded, else as this machine would choose."""
    recorded = run.facts.dtype.compute
    return getattr(torch, recorded) if recorded else choose_dtype(config.model.dtype, find_device())[0]


def too_slow(what: str, seconds: float, prompts: int, tokens: int) -> str | None:
    """Why greedy answers are left out; None when they are not."""
    if seconds <= ANSWER_SECONDS:
        return None
    return (
        f"left out: {prompts} answers of {tokens} tokens by {what} would take about {clock(seconds)} here, "
        f"where its weights are read anew for each token; `qdpo chat` writes with the model in memory"
    )


def _engine(run: TrainedRun) -> str:
    return "transformers, 4 bit" if run.record["quantization"]["method"] == "nf4" else "transformers"


def _answers_in_memory(run: TrainedRun, prompts: list[list[int]], ends: frozenset[int], tokens: int) -> list[list[int]]:
    """By the trained policy as the training has it, in 4 bits on the card."""
    return TorchScorer(load_trained(run.folder).policy).generate(prompts, ends, tokens)


def _measure_whole(run: TrainedRun, config: RunConfig, heldout: Heldout, bench: Bench, into: MergeBase) -> Yardstick:
    """As `measure`, one whole model after the other in memory, each in the type that the run's backend loads it in."""
    note(f"the models are loaded whole to be scored: {bench.not_streamed}")
    policy = load_trained(run.folder).policy
    scorer, kept = TorchScorer(policy, _engine(run)), tokens_to_keep(heldout, int(policy.config.vocab_size))
    trained = score(scorer, heldout, kept, bench.room)
    with policy.disable_adapter():
        base = score(scorer, heldout, kept, bench.room)
    prompts = [ids for _, ids in heldout.prompts[: config.verify.answers]]
    answers = scorer.generate(prompts, heldout.ends, config.verify.answer_tokens)
    del policy, scorer
    _release()
    if into == "trained":
        return Yardstick(heldout, base, trained, None, None, answers, kept)
    whole = []
    for model in (run.without_adapter().merged(into), run.merged(into)):
        with whole_scorer(merged_model(model), "transformers") as one:
            whole.append(score(one, heldout, kept, bench.room))
        _release()
    return Yardstick(heldout, whole[0], whole[1], trained, None, answers, kept)


def _release() -> None:
    """Give back the memory of models that nobody has any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
