"""Settings for one's own model and data, each with its reason, and the preset file that says so."""

from __future__ import annotations

import math
import re
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qdpo.config.fields import settings
from qdpo.config.presets import NEUTRAL
from qdpo.config.resolve import value_of
from qdpo.config.schema import RunConfig
from qdpo.config.steps import steps_for
from qdpo.config.strict_yaml import dump
from qdpo.data.split import split_by_prompt
from qdpo.model.source import is_local
from qdpo.planner.looks import Look

LONGEST = 4096
"""Tokens of a pair beyond which a few long ones are not worth their memory."""
ALIKE = 0.5
"""Share of common tokens from which the chosen answer itself is learned too."""
LARGE = 1500.0
"""Millions of weights from which a CPU is not expected to train a model."""


@dataclass(frozen=True)
class Suggested:
    """One setting.

    Attributes:
        key: dotted key.
        value: its value.
        why: the reason, with its source where there is one.
    """

    key: str
    value: Any
    why: str


def suggest(look: Look, config: RunConfig, given: Set[str]) -> list[Suggested]:
    """Settings for a model and data, in the order of the schema; what is not here is left to the neutral preset.

    Args:
        look: both, looked at.
        config: has the values that are given.
        given: keys of settings that are not to be chosen.
    """
    held = held_out(look)
    train = max(look.pairs - (0 if look.own_heldout else held), 1)
    pairs_per_step, why_pairs = _pairs_per_step(train)
    passes, why_passes = _epochs(train)
    if "train.pairs_per_step" in given:
        pairs_per_step = config.train.pairs_per_step
    if "train.num_train_epochs" in given:
        passes = config.train.num_train_epochs
    steps = steps_for(train, pairs_per_step, passes, config.train.max_steps)
    every = max(math.ceil(steps / 5), min(10, steps))
    chosen = [
        *_card(look),
        Suggested("model.name", look.model, _model(look)),
        Suggested("data.name", look.data, f"{look.pairs:,} pairs, {look.shape}"),
        *_held_out(look, held, config.train.seed),
        Suggested("data.template", look.template, look.template_reason),
        *_lengths(look),
        _loss(look),
        Suggested("train.pairs_per_step", pairs_per_step, why_pairs),
        Suggested("train.num_train_epochs", float(passes), f"{why_passes}: {steps:,} steps"),
        _learning_rate(config.lora.r),
        Suggested("train.eval_every", every, f"{math.ceil(steps / every)} evaluations, and one before the first step"),
        Suggested("train.save_every", every, "with each evaluation"),
    ]
    kept = {setting.key: setting for setting in chosen}
    kept |= {key: Suggested(key, value_of(config, key), "given") for key in given - {"name"}}
    return [kept[key] for key in settings() if key in kept]


def held_out(look: Look) -> int:
    """Pairs to hold out: a tenth of few, 64 and more of 640, 5 % of many, at most 500."""
    n = look.pairs
    return max(round(n / 10), 1) if n < 640 else min(max(64, n // 20), 500)


def _held_out(look: Look, held: int, seed: int) -> list[Suggested]:
    if look.eval_split is not None:
        return [Suggested("data.eval_split", look.eval_split, "the data's own")]
    if look.own_heldout:
        return []
    # the split is by prompt, and a prompt may have any number of pairs: the share that holds enough of them
    share, count = math.ceil(1000 * held / look.pairs) / 1000, 0
    while (count := len(split_by_prompt(look.keys, share, seed, look.groups)[1])) < held and share < 0.3:
        share = round(share + 0.005, 3)
    few = "; under 30 pairs tell little" if count < 30 else ""
    return [Suggested("data.eval_fraction", share, f"{count} pairs held out, by prompt{few}")]


def _card(look: Look) -> list[Suggested]:
    if look.weights is None or look.weights < LARGE:
        return []
    # a 4-bit base takes about 0.6 bytes a weight; the rest is for activations
    sizes = (15, 23, 45, 78)
    need = look.weights * 0.6e6 / 2**30
    size = next((size for size in sizes if need <= 0.5 * size), sizes[-1])
    return [
        Suggested("card", f"{size} GiB or more", "a guess from the number of weights; `qdpo plan` estimates"),
        Suggested("gpu_memory_gib", float(size), "too large a model for a CPU"),
    ]


def _model(look: Look) -> str:
    size = "size unknown" if look.weights is None else f"{look.weights:,.{0 if look.weights >= 10 else 1}f} M weights"
    context = f", context {look.context:,}" if look.context else ""
    return f"{look.family}, {size}{context}; held in 4 bits"


def _lengths(look: Look) -> list[Suggested]:
    prompts, answers = look.lengths[:, 0], look.lengths[:, 1]
    both = prompts + answers
    longest, longest_prompt = int(both.max()), int(prompts.max())
    # all of them where that costs little, else 99 of 100
    most = longest if longest <= 1024 else max(1024, int(np.percentile(both, 99)))
    length = min(_up(most, 64), look.context or LONGEST, LONGEST)
    if length >= longest:
        prompt = min(_up(longest_prompt, 32), length - 1)
    else:
        prompt = min(_up(int(np.percentile(prompts, 99)), 32), 3 * length // 4)
    # a pair is cut when it is longer than both allow
    fits = (both <= length) & (prompts <= prompt)
    cut = int((~fits).sum())
    why = f"median {int(np.median(both))}, longest {longest:,} tokens; {cut:,} pairs are cut"
    return [
        Suggested("data.max_length", length, why),
        Suggested("data.max_prompt_length", prompt, f"median {int(np.median(prompts))}, longest {longest_prompt:,}"),
    ]


def _up(value: int, step: int) -> int:
    return math.ceil(value / step) * step


def _loss(look: Look) -> Suggested:
    same = f"the answers of a pair share {look.alike:.0%} of their tokens"
    if look.alike >= ALIKE:
        why = f"{same}: DPO alone makes the chosen one rarer too (arXiv 2402.13228; sft: 2404.19733)"
        return Suggested("loss.loss_type", ["sigmoid", "sft"], why)
    return Suggested("loss.loss_type", ["sigmoid"], f"DPO (arXiv 2305.18290); {same}")


def _pairs_per_step(pairs: int) -> tuple[int, str]:
    if pairs >= 320:
        return 16, "alignment-handbook, on one GPU"
    return (8, "few pairs: more steps") if pairs >= 100 else (4, "very few pairs: more steps")


def _epochs(pairs: int) -> tuple[float, str]:
    if pairs >= 10_000:
        return 1.0, "alignment-handbook, 61,966 pairs"
    if pairs >= 1_000:
        return 2.0, "zephyr-7b-gemma, 6,750 pairs"
    return 3.0, "few pairs (Zephyr, arXiv 2310.16944: up to 3)"


def _learning_rate(rank: int) -> Suggested:
    if rank <= 32:
        return Suggested("train.learning_rate", 5e-5, f"rank {rank}: NeuralHermes-2.5's, at rank 16 with alpha 16")
    return Suggested("train.learning_rate", 5e-6, f"rank {rank}: alignment-handbook's QLoRA, at rank 128")


def name_of(look: Look) -> str:
    """A name for the runs: of model and data, in the letters that a name may have."""
    parts = [Path(place).name if is_local(place) else place.rpartition("/")[2] for place in (look.model, look.data)]
    words = [re.sub(r"[^a-z0-9]+", "-", re.sub(r"\.\w{3,7}$", "", part.lower())).strip("-") for part in parts]
    return "-".join(filter(None, (words[0][:40].strip("-"), words[1][:23].strip("-")))) or "mine"


def remarks(look: Look) -> list[str]:
    """What was seen beside what the settings say."""
    found = []
    if look.system:
        found.append(f"{look.system:,} of the first {look.peeked:,} pairs bring a system message")
    if any(look.thinking):
        chosen, rejected = look.thinking
        found.append(f"thinking tags in {chosen:,} chosen and {rejected:,} rejected answers of {look.peeked:,}")
        if min(chosen, rejected) * 2 < max(chosen, rejected):
            found.append("the tags alone tell chosen from rejected: the model may learn them and nothing else")
    return found


def to_file(name: str, look: Look, chosen: list[Suggested]) -> str:
    """The preset file, every value with its reason.

    Args:
        name: of the preset and its runs.
        look: what was looked at.
        chosen: the settings, in the order of the schema.
    """
    lines = [
        "# Made by qdpo from what it saw in model and data: every value is yours to change.",
        f"# `qdpo presets show {NEUTRAL}` lists and explains all other settings; add the ones you need.",
        *(f"# Seen: {remark}." for remark in remarks(look)),
        f"extends: {NEUTRAL}",
        f"name: {name}",
        f"about: {dump(f'DPO of {_short(look.model)} on {_short(look.data)}')}",
    ]
    section = ""
    for setting in chosen:
        head, _, leaf = setting.key.rpartition(".")
        if head != section:
            lines += ["", f"{head}:"]
            section = head
        why = "".join(c if c.isprintable() else "?" for c in setting.why)
        lines.append(f"{'  ' if head else ''}{leaf}: {dump(setting.value)}  # {why}")
    return "\n".join(lines) + "\n"


def _short(place: str) -> str:
    return Path(place).name if is_local(place) else place
