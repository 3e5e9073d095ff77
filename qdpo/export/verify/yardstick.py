"""What exports of a run are measured against: base, trained policy and merged weights, scored in one pass."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace

import torch

from qdpo.config.schema import RunConfig
from qdpo.console import note
from qdpo.export.pairs import Heldout
from qdpo.export.source import MergeBase, TrainedRun, quantization_of
from qdpo.export.verify.bench import Bench, whole_scorer
from qdpo.export.verify.parity import Scores, collect, completions, score, tokens_to_keep
from qdpo.export.verify.scorers import TorchScorer
from qdpo.export.verify.streams import Reading, Voice, beside, continued, merged_into, pass_through, writing_seconds
from qdpo.export.whole import computing_dtype, merged_model
from qdpo.hardware import choose_dtype, find_device
from qdpo.model.merged import MergedModel
from qdpo.model.skeleton import AdapterSkeleton, skeleton
from qdpo.model.streamed import Streamed
from qdpo.progress import clock
from qdpo.run.trained import load_trained

SAMPLES = 3
SAMPLE_TOKENS = 40
SAMPLE_SECONDS = 600.0
"""Sample answers that would take longer are left out, and the report says so."""


@dataclass(frozen=True)
class Yardstick:
    """What exports of a run are measured against: computed once, used for every artefact.

    Attributes:
        heldout: the pairs.
        base: scores of the base that rewards are measured against.
        trained: scores of the trained policy.
        merged: scores of the merged weights before any rounding to an export's precision; None where no artefact asks.
        answers: the trained policy's greedy answers to the first prompts, or why there are none.
        tokens_kept: tokens of each completion whose distributions are compared.
    """

    heldout: Heldout
    base: Scores
    trained: Scores
    merged: Scores | None
    answers: list[list[int]] | str
    tokens_kept: int


def measure(
    run: TrainedRun, config: RunConfig, heldout: Heldout, bench: Bench, merged: MergedModel | None, into: MergeBase
) -> Yardstick:
    """Score base, trained policy and merged weights on a run's held-out pairs.

    Args:
        run: where they are.
        config: the run's.
        heldout: the pairs.
        bench: where they are scored.
        merged: the merged weights; None when they need not be scored.
        into: which base they are merged into.

    Raises:
        InputMissingError: adapter and base do not belong together.
        QdpoError: one of them cannot be read.
    """
    if bench.not_streamed is not None:
        return _measure_whole(run, heldout, bench, merged)
    base = run.base_as_trained()
    device = find_device()
    # a CPU computes as everything else that is compared here, whatever its runs are faster in
    dtype = computing_dtype() if device.kind == "cpu" else choose_dtype(config.model.dtype, device)[0]
    attention = config.model.attn_implementation

    plain = Streamed(skeleton(base.config, dtype, attention), bench.device)
    adapter = AdapterSkeleton(skeleton(base.config, dtype, attention), run.adapter)
    policy = Streamed(adapter.model, bench.device)
    engine = _engine(run)
    voices = [Voice(engine, plain), Voice(engine, policy, beside(adapter, policy))]
    if merged is not None:
        streamed = Streamed(skeleton(merged.config, computing_dtype()), bench.device)
        # The weights are still those that the merge starts from where computing has not rounded them once more.
        same = into == "trained" and dtype in (torch.float32, quantization_of(run.facts).load_dtype)
        voices.append(Voice("transformers", streamed, merged_into(merged, streamed, same)))

    asked, kept = completions(heldout.pairs), tokens_to_keep(heldout, int(base.config["vocab_size"]))
    reading = Reading(plain, base.names, base.read)
    what = f"scoring {', '.join(['base', 'trained', 'merged'][: len(voices)])} on {len(heldout.pairs)} pairs"
    scores = [
        collect(voice.engine, asked, logits, kept, bench.room)
        for voice, logits in pass_through(reading, voices, asked, bench.room, what)
    ]

    prompts = [ids for _, ids in heldout.prompts[:SAMPLES]]
    answers: list[list[int]] | str
    if bench.device.type == "cuda":
        answers = _answers_in_memory(run, prompts, heldout.ends)
        _release()
    else:
        seconds = writing_seconds(voices[1], sum(len(one.ids) for one in asked), prompts, SAMPLE_TOKENS)
        answers = too_slow("the trained model", seconds) or continued(
            policy, lambda part: voices[1].weights(part, reading(part)), prompts, heldout.ends, SAMPLE_TOKENS
        )
    return Yardstick(heldout, scores[0], scores[1], scores[2] if merged is not None else None, answers, kept)


def too_slow(what: str, seconds: float) -> str | None:
    """Why sample answers are left out; None when they are not."""
    if seconds <= SAMPLE_SECONDS:
        return None
    return (
        f"left out: {SAMPLES} answers of {SAMPLE_TOKENS} tokens by {what} would take about {clock(seconds)} here, "
        f"where its weights are read anew for each token; `qdpo chat` writes with the model in memory"
    )


def _engine(run: TrainedRun) -> str:
    return "transformers, 4 bit" if run.record["quantization"]["method"] == "nf4" else "transformers"


def _answers_in_memory(run: TrainedRun, prompts: list[list[int]], ends: frozenset[int]) -> list[list[int]]:
    """By the trained policy as the training has it, in 4 bits on the card."""
    return TorchScorer(load_trained(run.folder).policy).generate(prompts, ends, SAMPLE_TOKENS)


def _measure_whole(run: TrainedRun, heldout: Heldout, bench: Bench, merged: MergedModel | None) -> Yardstick:
    """As `measure`, one whole model after the other in memory."""
    note(f"the models are loaded whole to be scored: {bench.not_streamed}")
    yardstick = _base_and_trained(run, heldout, bench)
    _release()
    if merged is None:
        return yardstick
    with whole_scorer(merged_model(merged), "transformers") as whole:
        return replace(yardstick, merged=score(whole, heldout.pairs, yardstick.tokens_kept, bench.room))


def _base_and_trained(run: TrainedRun, heldout: Heldout, bench: Bench) -> Yardstick:
    policy = load_trained(run.folder).policy
    scorer, kept = TorchScorer(policy, _engine(run)), tokens_to_keep(heldout, int(policy.config.vocab_size))
    trained = score(scorer, heldout.pairs, kept, bench.room)
    with policy.disable_adapter():
        base = score(scorer, heldout.pairs, kept, bench.room)
    answers = scorer.generate([ids for _, ids in heldout.prompts[:SAMPLES]], heldout.ends, SAMPLE_TOKENS)
    return Yardstick(heldout, base, trained, None, answers, kept)


def _release() -> None:
    """Give back the memory of models that nobody has any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
