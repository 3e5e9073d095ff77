"""Models that are scored while their weights pass through memory part by part, several in one pass where they share."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qdpo.errors import InputMissingError
from qdpo.export.verify.room import Room, free_on
from qdpo.export.verify.scorers import Asked
from qdpo.model.merged import EMBEDDING, MergedModel
from qdpo.model.skeleton import AdapterSkeleton, base_name
from qdpo.model.stream_memory import SPARE_CARD_BYTES, WHOLE_BYTES
from qdpo.model.streamed import END, Passage, Streamed
from qdpo.progress import Progress

Part = dict[str, Tensor]
"""Weights of a part by their names in the model's state, as the model computes with them."""


class Reading:
    """A model's weights, read from where they are stored when their part begins.

    Args:
        streamed: the model.
        names: tensors that are stored; a head that is the embedding may be left out.
        read: gives one of them.

    Raises:
        InputMissingError: weights are missing.
    """

    def __init__(self, streamed: Streamed, names: Collection[str], read: Callable[[str], Tensor]) -> None:
        self._streamed, self._names, self._read = streamed, names, read
        lost = sorted({self._stored(name) for part in streamed.parts.values() for name in part} - set(names))
        if lost:
            raise InputMissingError(f"{len(lost)} weights are missing (first: {lost[0]})")

    def _stored(self, name: str) -> str:
        tied = name not in self._names and name in self._streamed.tied
        return EMBEDDING if tied else name

    def __call__(self, part: str, advance: Callable[[int], None] = lambda tensors: None) -> Part:
        """The weights of a part; `advance` is told of each tensor."""
        weights = {}
        for name in self._streamed.parts[part]:
            weights[name] = self._streamed.lent(name, self._read(self._stored(name)))
            advance(1)
        return weights


@dataclass
class Voice:
    """One of the models of a pass.

    Attributes:
        engine: what computes, for the table.
        streamed: the model.
        weights: makes the weights of a part of what the base has there; what it is given may be changed.
        first: how many of the sequences it is asked, the first ones; None for all.
        reading: seconds that its weights have taken, the base's among them.
        computing: seconds that it has computed with them, but for the logits.
    """

    engine: str
    streamed: Streamed
    weights: Callable[[str, Part], Part] = field(default=lambda part, base: base)
    first: int | None = None
    reading: float = 0.0
    computing: float = 0.0


def beside(adapter: AdapterSkeleton, streamed: Streamed) -> Callable[[str, Part], Part]:
    """The weights of base and adapter, each on its own, as PEFT computes with them."""

    def weights(part: str, base: Part) -> Part:
        return {
            name: streamed.lent(name, adapter.read(name) if adapter.reads(name) else base[base_name(name)])
            for name in streamed.parts[part]
        }

    return weights


def read_anew(model: MergedModel, streamed: Streamed) -> Callable[[str, Part], Part]:
    """The weights of another model than the base, which is read as well; the base's are given up for them.

    Args:
        model: gives them.
        streamed: computes with them.
    """

    def weights(part: str, base: Part) -> Part:
        base.clear()
        stored = {name: name if name in model.names else EMBEDDING for name in streamed.parts[part]}
        return {name: streamed.lent(name, model.read(own)) for name, own in stored.items()}

    return weights


def pass_through(
    base: Reading, voices: Sequence[Voice], asked: Sequence[Asked], room: Room, what: str
) -> Iterator[tuple[Voice, Iterator[tuple[int, Tensor]]]]:
    """Take all sequences through all voices, with one reading of the base.

    Args:
        base: reads a part of the base.
        voices: the models, in order; the last may use up what the base has.
        asked: the sequences, and where predictions are asked for.
        room: for hidden states.
        what: is done, for the progress.

    Yields:
        each voice with its logits, as `Scorer.logits` gives them, to be taken before the next voice is asked for.
    """
    own_share = [asked[: voice.first] for voice in voices]
    passages = [
        Passage(voice.streamed, [one.ids for one in share], _on(room, voice.streamed))
        for voice, share in zip(voices, own_share, strict=True)
    ]
    parts = voices[0].streamed.parts
    steps = sum(map(len, parts.values())) + (len(parts) - 2) * sum(map(len, own_share))
    with Progress(what, steps, unit="steps") as progress:
        for part in parts:
            began = time.monotonic()
            own = base(part, progress.advance)
            read = time.monotonic()
            for voice, passage, share in zip(voices, passages, own_share, strict=True):
                voice.reading += read - began
                started = time.monotonic()
                weights = voice.weights(part, own)
                voice.reading += time.monotonic() - started
                started = time.monotonic()
                if part == END:
                    yield voice, _logits(passage, share, weights)
                else:
                    passage.run(part, weights, progress.advance)
                    voice.computing += time.monotonic() - started
                del weights
            del own


def _on(room: Room, streamed: Streamed) -> Callable[[int, int, torch.dtype], Tensor]:
    return lambda rows, columns, dtype: room.take(rows, columns, dtype, streamed.device)


def _logits(passage: Passage, asked: Sequence[Asked], weights: Part) -> Iterator[tuple[int, Tensor]]:
    vocabulary = int(passage.streamed.model.config.get_text_config().vocab_size)
    chunks = [(number, rows) for number, one in enumerate(asked) for rows in one.chunks(vocabulary)]
    yield from zip((number for number, _ in chunks), passage.logits(chunks, weights), strict=True)


def continued(
    streamed: Streamed,
    weights: Callable[[str], Part],
    prompts: Sequence[Sequence[int]],
    ends: frozenset[int],
    new_tokens: int,
) -> list[list[int]]:
    """The likeliest continuations of prompts, one pass over the weights for a token of all of them.

    Args:
        streamed: the model.
        weights: gives those of a part.
        prompts: token ids.
        ends: tokens that end a continuation.
        new_tokens: most tokens of each.
    """
    from transformers import DynamicCache

    weights = _kept(streamed, weights)
    made: list[list[int]] = [[] for _ in prompts]
    steps = {number: list(ids) for number, ids in enumerate(prompts) if ids}
    caches = {number: DynamicCache(config=streamed.model.config) for number in steps}

    def plain(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(rows, columns, dtype=dtype, device=streamed.device)

    with Progress("writing sample answers", new_tokens, unit="tokens") as progress:
        for _ in range(new_tokens):
            if not steps:
                break
            passage = Passage(streamed, list(steps.values()), plain, [caches[number] for number in steps])
            for part in streamed.parts:
                own = weights(part)
                if part == END:
                    ends_of = [(row, slice(-1, None)) for row in range(len(steps))]
                    last = [int(logits.argmax()) for logits in passage.logits(ends_of, own)]
                else:
                    passage.run(part, own)
                del own
            steps = {number: [token] for number, token in zip(steps, last, strict=True) if token not in ends}
            for number, (token,) in steps.items():
                made[number].append(token)
            progress.advance(1)
    return made


def _kept(streamed: Streamed, weights: Callable[[str], Part]) -> Callable[[str], Part]:
    """The same weights, read once, where the model as a whole has room."""
    if not can_be_kept(streamed):
        return weights
    return functools.cache(weights)


def can_be_kept(streamed: Streamed) -> bool:
    """Whether a streamed model may be in memory as a whole for a while."""
    if streamed.device.type == "cuda":
        return streamed.nbytes + SPARE_CARD_BYTES <= free_on(streamed.device)
    return streamed.nbytes <= WHOLE_BYTES


class StreamScorer:
    """An artefact whose weights are streamed through memory.

    Args:
        streamed: the model.
        weights: gives those of a part.
        engine: what computes, for the table.
        room: for hidden states.
    """

    def __init__(self, streamed: Streamed, weights: Reading, engine: str, room: Room) -> None:
        self.engine, self._weights, self._room = engine, weights, room
        self._voice = Voice(engine, streamed)
        self._tokens = 0

    def logits(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Tensor]]:
        """As `Scorer.logits`; the first come when all sequences have passed all layers."""
        self._tokens += sum(len(one.ids) for one in asked)
        for _, pieces in pass_through(self._weights, [self._voice], asked, self._room, f"scoring by {self.engine}"):
            yield from pieces

    def writing_seconds(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> float:
        return writing_seconds(self._voice, self._tokens, prompts, new_tokens)

    def generate(self, prompts: Sequence[Sequence[int]], ends: frozenset[int], new_tokens: int) -> list[list[int]]:
        return continued(self._voice.streamed, self._weights, prompts, ends, new_tokens)


def writing_seconds(voice: Voice, scored: int, prompts: Sequence[Sequence[int]], new_tokens: int) -> float:
    """How long `continued` takes, by a pass that the voice has made.

    Args:
        voice: was scored.
        scored: tokens that it has been scored on.
        prompts, new_tokens: as `continued` takes them.
    """
    tokens = sum(map(len, prompts)) + new_tokens * len(prompts)
    passes = 1 if can_be_kept(voice.streamed) else new_tokens
    return passes * voice.reading + tokens * voice.computing / max(scored, 1)
