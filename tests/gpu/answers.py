"""What the written answers of an evaluation take, beside what the planner says that they take."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gpu.bases import Settings, random_model

from benchmarks import measure
from qdpo.config.schema import RunConfig, SamplesSection
from qdpo.hardware import Device
from qdpo.model.lora import attach, disable_dropout
from qdpo.planner.cards import card_of
from qdpo.planner.estimate import answered
from qdpo.planner.find import Base
from qdpo.planner.meter import peak_bytes
from qdpo.planner.plays import plays_for
from qdpo.planner.settings import compute_type
from qdpo.planner.timing import answers_work
from qdpo.training.samples import Prompt, Samples
from qdpo.training.stages.model import set_up_engine
from qdpo.training.stages.state import RunState


class Numbers:
    """In place of a tokenizer: tokens are written as their numbers."""

    chat_template = None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The numbers."""
        return " ".join(map(str, ids))


def beside_estimate(config: RunConfig, base: Settings, device: Device) -> dict[str, Any]:
    """Answer as many prompts as a run does, of the longest length that it allows, to the last token that it allows.

    Args:
        config: a preset's.
        base: configuration of its base, which is made of random weights.
        device: where.

    Returns:
        Seconds and peak bytes above the model, measured and estimated: of the first evaluation, in which the base
        answers too, and of a later one; its tokens a second.
    """
    card = card_of(device)
    dtype = getattr(torch, compute_type(config, Base("random weights", base, ""), card)[0])
    model = random_model(base, device.torch, dtype, config.model.quantization, config.model.double_quant)
    policy = attach(model, config.lora, config.train.seed)
    disable_dropout(policy)
    rows, new = config.samples.count, config.samples.max_new_tokens
    draw = random.Random(0)
    length = config.data.max_prompt_length
    prompts = [Prompt([draw.randrange(8, base["vocab_size"]) for _ in range(length)]) for _ in range(rows)]
    with TemporaryDirectory() as folder:
        engine = set_up_engine(RunState(Path(folder), config, device), policy, dtype)
        tokenizer: Any = Numbers()
        budget, short = config.packing.tokens_without_grad, SamplesSection(max_new_tokens=2)
        # no token ends an answer
        callback = Samples(Path(folder), prompts, tokenizer, frozenset(), short, engine, budget)
        evaluation = partial(callback.answers, policy, 0)
        evaluation()
        callback.section, callback.base = config.samples, []
        first = measure.timed(evaluation, device.torch).wall
        later = measure.timed(evaluation, device.torch).wall
        peak = peak_bytes(evaluation, device.torch)
        lines = evaluation()
    plays = plays_for(Base("random weights", base, ""), config, card)
    once = answers_work(plays, config, card, length).seconds
    return {
        "prompts": rows,
        "prompt_tokens": length,
        "answer_tokens": [len(line["policy"].split()) for line in lines],
        "at_once": callback.at_once,
        "first_seconds": first,
        "first_seconds_estimated": 2 * once,
        "seconds": later,
        "seconds_estimated": once,
        "tokens_per_second": rows * new / later,
        "peak_bytes": peak,
        "peak_bytes_estimated": max(sum(kinds.values()) for _, kinds in answered(plays, config, length)),
    }
