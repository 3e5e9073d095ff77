"""Can chosen be told from rejected without reading the prompt, and by what?

A small linear model sees the answers alone: which of the two has which words, beginnings, ends and marks. Each pair is
judged by a model that was fitted to pairs with other prompts. Where it is right far more often than by chance, a policy
can win the pairs by the same features and learn nothing of what was meant to be preferred.
"""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import Any

import numpy as np

from qdpo.data.pairs import Message, Pair
from qdpo.data.quality.oddities import script_of
from qdpo.foreign import shown
from qdpo.intervals import wilson_interval
from qdpo.redact import redact

LOOKED_AT = 1_500
"""Pairs that are looked at: a seeded sample where there are more."""
HEAD, TAIL = 400, 100
"""Characters at the beginning and at the end of an answer that are looked at."""
FOLDS = 5
FEATURES = 1_000
"""Features of one model: those that set its pairs apart most."""
RARE = 4
"""Pairs that a feature must set apart, to be one."""
RIDGE = 10.0
"""Penalty on squared weights, in pairs."""
FEWEST = 30
"""Prompts below which nothing is said."""
REMARKED, WARNED = 0.75, 0.9
"""Where the lower end of the interval of the share makes a remark, and a warning."""
OFTEN, ONE_SIDED = 0.1, 0.9
"""One feature alone is remarked on where it sets this share of the pairs apart, and the interval of its share on one
side begins here or above."""
BY_CHANCE = 4.5
"""Standard deviations of a coin below which a feature is not named: of so many, some are one-sided by chance."""
NAMED, EXAMPLES = 5, 5
"""Features that are named, and rows of each."""

TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[^\w\s]|\s*\n\s*")
"""A word, a sign, a character of a script that has no spaces, or the end of a line with the space around it."""
MARKS = {
    "has a tag of thinking": re.compile(r"</?(?:think|thinking|thought|reasoning|scratchpad|reflection)>", re.I),
    "has a phrase of refusal": re.compile(
        r"\b(?:I(?:['’]m| am) sorry|I apologi[sz]e|I (?:cannot|can['’]t|won['’]t)|I(?:['’]m| am) (?:not able|unable)"
        r"|[Aa]s an AI)\b"
    ),
    "has a heading": re.compile(r"^#{1,6} ", re.M),
    "has bold text": re.compile(r"\*\*\S"),
    "has a list": re.compile(r"^[ \t]*(?:[-*•]|\d+[.)])[ \t]", re.M),
    "has a block of code": re.compile("```"),
    "has a table": re.compile(r"^\|.*\|[ \t]*$", re.M),
}
TELLING = {verb: rank for rank, verb in enumerate(("is", *MARKS, "begins with", "ends with"))}
"""Of two features that do as much, the one that comes first here is named."""
Feature = str | tuple[str, str]
"""A word that an answer has, or what it does or is: a verb with its object in quotes, which may be empty."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """The two ends of an answer, the second one empty where the first is all, and its length in characters."""

    head: str
    tail: str
    length: int

    @classmethod
    def of(cls, messages: Sequence[Message]) -> _Answer:
        text = "\n\n".join(message.content for message in messages)
        if len(text) <= HEAD + TAIL:
            return cls(text, "", len(text))
        return cls(text[:HEAD], text[-TAIL:], len(text))


@dataclass(frozen=True, slots=True)
class _Sampled:
    """Of one pair: what its row is named by, the hash of its prompt, and both answers."""

    row: int | str
    prompt: int
    chosen: _Answer
    rejected: _Answer


class Separable:
    """Looks at a sample of the pairs, and says how well their answers alone tell chosen from rejected."""

    def __init__(self) -> None:
        self.seen = 0
        self.sample: list[_Sampled] = []
        self.draw = random.Random(0)

    def observe(self, pair: Pair, row: int | str, prompt_key: int) -> None:
        """Look at one pair, before anything of it is cut.

        Args:
            pair: the pair; one without a prompt is passed over, as its answers are all there is to tell them apart by.
            row: what its row is named by in a report.
            prompt_key: hash of its prompt; pairs that share one are never on both sides of the judgement.
        """
        if not pair.prompt:
            return
        self.seen += 1
        if self.seen > LOOKED_AT:
            place = self.draw.randrange(self.seen)
            if place >= LOOKED_AT:
                return
            del self.sample[place]
        self.sample.append(_Sampled(row, prompt_key, _Answer.of(pair.chosen), _Answer.of(pair.rejected)))

    def as_dict(self) -> dict[str, Any]:
        """For data_report.json; empty where there are too few prompts.

        `share` of `n` pairs (a sample of `seen`) whose chosen answer gets the higher score from a model fitted to the
        pairs of other prompts, ties counted half: for the differences of pairs this is the AUC. `low` and `high` are
        the ends of Wilson's 95 % interval, with as many trials as there are different prompts. `features`: in how many
        pairs only the chosen answer has it, in how many only the rejected, and the first rows of the larger side.
        """
        prompts = np.array([kept.prompt for kept in self.sample], np.uint64)
        different = len(np.unique(prompts))
        if different < FEWEST:
            return {}
        table = _Table(self.sample)
        share = float(table.judged((prompts % FOLDS).astype(np.int64)).mean())
        low, high = wilson_interval(share, different)
        return {
            "share": share,
            "low": low,
            "high": high,
            "n": len(self.sample),
            "seen": self.seen,
            "features": list(table.setting_apart([kept.row for kept in self.sample])),
        }


def sentences(found: dict[str, Any], named: Callable[[list[int | str], int], str]) -> list[str]:
    """What a person should know of it, in words: nothing, that the answers alone tell, or which feature does.

    Args:
        found: what `as_dict` said.
        named: puts rows into words; takes the first ones and the number of all.
    """
    if not found:
        return []
    pairs = f"{found['n']:,} pairs" + (" (a sample)" if found["seen"] > found["n"] else "")
    by = [_clause(feature, named) for feature in found["features"]]
    if found["low"] > REMARKED:
        how = f"{found['share']:.1%} [{100 * found['low']:.1f}, {100 * found['high']:.1f}] of {pairs}"
        what = f"the answers alone tell chosen from rejected in {how}"
        if is_alarming(found):
            what = f"the pairs can be told apart without reading the prompt: {what}"
        return ["; ".join([what, *by])]
    return [
        f"of {pairs}: {clause}"
        for feature, clause in zip(found["features"], by, strict=True)
        if _is_leak(feature["chosen"], feature["rejected"], found["n"])
    ]


def is_alarming(found: Mapping[str, Any]) -> bool:
    """Whether what `as_dict` said is a warning."""
    return bool(found) and bool(found["low"] > WARNED)


def _is_leak(chosen: int, rejected: int, pairs: int) -> bool:
    apart = chosen + rejected
    return apart >= max(FEWEST, OFTEN * pairs) and wilson_interval(max(chosen, rejected) / apart, apart)[0] >= ONE_SIDED


def _clause(feature: dict[str, Any], named: Callable[[list[int | str], int], str]) -> str:
    sides = sorted(("chosen", "rejected"), key=lambda side: -feature[side])
    often, seldom = (feature[side] for side in sides)
    return (
        f"only the {sides[0]} answer {feature['feature']} in {often:,} ({named(feature['first_rows'], often)}), "
        f"only the {sides[1]} one in {seldom:,}"
    )


class _Table:
    """Which pair has which feature on one side only.

    Attributes:
        codes, vocabulary: what each feature is (`_name`).
        pairs, features, signs: one entry for each, ordered by pair: +1 where the chosen answer has the feature.
        count: of pairs.
    """

    def __init__(self, sample: Sequence[_Sampled]) -> None:
        traits = [
            tuple(_traits(one, other))
            for kept in sample
            for one, other in ((kept.chosen, kept.rejected), (kept.rejected, kept.chosen))
        ]
        different = sorted(
            dict.fromkeys(chain.from_iterable(traits)), key=lambda trait: TELLING.get(trait[0], len(TELLING))
        )
        vocabulary: dict[Feature, int] = {trait: number for number, trait in enumerate(different)}
        answers = (answer for kept in sample for answer in (kept.chosen, kept.rejected))
        codes_of = [_codes(known, answer, vocabulary) for known, answer in zip(traits, answers, strict=True)]
        sides: list[np.ndarray] = []
        for chosen, rejected in zip(codes_of[::2], codes_of[1::2], strict=True):
            sides += [np.setdiff1d(chosen, rejected, True), np.setdiff1d(rejected, chosen, True)]
        self.count = len(sample)
        lengths = [len(side) for side in sides]
        codes, features, counts = np.unique(np.concatenate(sides), return_inverse=True, return_counts=True)
        common = counts >= RARE
        entries = common[features]
        self.pairs = np.repeat(np.arange(2 * self.count) // 2, lengths)[entries]
        self.signs = np.repeat(np.tile([1, -1], self.count), lengths)[entries]
        self.features = (np.cumsum(common) - 1)[features[entries]]
        self.codes, self.vocabulary = codes[common], list(vocabulary)

    def one_sided(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each feature, in how many of some pairs (as a mask) only the chosen has it, and only the rejected."""
        inside = pairs[self.pairs]
        sides = (self.features[inside & (self.signs == sign)] for sign in (1, -1))
        chosen, rejected = (np.bincount(side, minlength=len(self.codes)) for side in sides)
        return chosen, rejected

    def judged(self, folds: np.ndarray) -> np.ndarray:
        """Of each pair, whether a model of the other folds' pairs scores the chosen answer higher: 1, 0, or a half."""
        scores = np.zeros(self.count)
        for fold in range(FOLDS):
            test = folds == fold
            best = np.argsort(-_apart(*self.one_sided(~test)), kind="stable")[:FEATURES]
            column = np.full(len(self.codes), -1)
            column[best] = np.arange(len(best))
            entries = column[self.features] >= 0
            dense = np.zeros((self.count, len(best)), np.int8)
            dense[self.pairs[entries], column[self.features[entries]]] = self.signs[entries]
            scores[test] = dense[test] @ _ridge(dense[~test].astype(np.float32))
        return (np.sign(np.round(scores, 6)) + 1) / 2

    def setting_apart(self, rows: Sequence[int | str]) -> Iterator[dict[str, Any]]:
        """The features that set most pairs apart, each among those that none before it does; takes all pairs' rows."""
        left = np.ones(self.count, bool)
        for _ in range(NAMED):
            chosen, rejected = self.one_sided(left)
            apart = _apart(chosen, rejected)
            if not len(apart) or apart.max() < BY_CHANCE:
                return
            best = int(np.argmax(apart))
            side = 1 if chosen[best] > rejected[best] else -1
            pairs, signs = self.pairs[self.features == best], self.signs[self.features == best]
            left[pairs] = False
            yield {
                "feature": redact(_name(int(self.codes[best]), self.vocabulary)),
                "chosen": int(np.count_nonzero(signs == 1)),
                "rejected": int(np.count_nonzero(signs == -1)),
                "first_rows": [rows[pair] for pair in pairs[signs == side][:EXAMPLES]],
            }


def _apart(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """How one-sided features are, in standard deviations of a coin."""
    total = chosen + rejected
    return np.where(total >= RARE, np.abs(chosen - rejected) / np.sqrt(np.maximum(total, 1)), 0.0)


def _ridge(x: np.ndarray) -> np.ndarray:
    """Weights w that bring x w to 1 with a penalty of RIDGE on their squares; x is [pairs, features]."""
    wide = len(x) < x.shape[1]
    # of -1, 0 and 1: exact in 32 bits, whatever the order of summation
    products = (x @ x.T if wide else x.T @ x).astype(np.float64)
    sums = np.ones(len(x)) if wide else x.sum(0, np.float64)
    np.fill_diagonal(products, products.diagonal() + RIDGE)
    solved = np.linalg.solve(products, sums)
    return x.T @ solved if wide else solved


def _traits(answer: _Answer, other: _Answer) -> Iterator[tuple[str, str]]:
    """What an answer is like beside the other one."""
    head, end = answer.head, answer.tail or answer.head
    if answer.length <= TAIL:
        yield "is", head
    yield from ((name, "") for name, mark in MARKS.items() if mark.search(head) or mark.search(answer.tail))
    starts = [found.end() for found in islice(TOKEN.finditer(head), 2)]
    yield from (("begins with", head[:start]) for start in reversed(starts))
    yield from (("ends with", found[0]) for found in deque(TOKEN.finditer(end[-TAIL:]), 1))
    if head[:1].isspace():
        yield "begins with white space", ""
    if end[-1:].isspace():
        yield "ends with white space", ""
    if head.lstrip()[:1].islower():
        yield "begins with a small letter", ""
    yield f"is written in {script_of(head)}", ""
    if answer.length > other.length:
        yield "is the longer one", ""


def _codes(traits: Sequence[Feature], answer: _Answer, vocabulary: dict[Feature, int]) -> np.ndarray:
    """Numbers of an answer's features, ascending: of traits and words their place in the vocabulary, which grows by new
    words; of two words in a row both places."""
    known = [vocabulary[trait] for trait in traits]
    for text in (answer.head, answer.tail):
        words = [vocabulary.setdefault(word, len(vocabulary)) for word in TOKEN.findall(text)]
        known += words
        known += [((first + 1) << 32) | second for first, second in pairwise(words)]
    return np.array(sorted(set(known)), np.int64)


def _name(code: int, vocabulary: Sequence[Feature]) -> str:
    """A feature in words that go on from `the answer`."""
    if code >= 1 << 32:
        first, second = vocabulary[(code >> 32) - 1], vocabulary[code & 0xFFFFFFFF]
        return f"has {shown(first)} before {shown(second)}"
    feature = vocabulary[code]
    verb, thing = ("has", feature) if isinstance(feature, str) else feature
    return f"{verb} {shown(thing)}" if thing else verb
