"""What a pass asks of memory and processor, span by span, and the same pass through a deeper model.

A pass is cut into spans at the borders of the decoder layers. Layers of one kind ask the same, so a pass through few
layers says what one through many would: its levels are sums of what the spans leave behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Bytes = dict[str, int]
"""Bytes by kind of tensor."""


class Span(NamedTuple):
    """From one border to the next.

    Attributes:
        phase: which part of a run it belongs to.
        layer: number of the decoder layer; -1 outside of the layers.
        left: what there is more at its end than at its begin.
        peak: what there is more at its highest moment than at its begin.
        flops: operations of products and attention.
        moved: bytes that everything else reads and writes.
    """

    phase: str
    layer: int
    left: Bytes
    peak: Bytes
    flops: float
    moved: float


@dataclass
class Sum:
    """Spans one after the other, from nothing.

    Attributes:
        level: bytes at the end.
        peaks: most bytes of each phase.
        kinds: what they were, at the highest moment of each phase.
        flops: operations by phase.
        moved: bytes read and written by phase.
    """

    level: Bytes = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, Bytes] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    moved: dict[str, float] = field(default_factory=dict)

    def add(self, span: Span) -> None:
        """Take the next span in."""
        at_peak = plus(self.level, span.peak)
        total = sum(at_peak.values())
        if total > self.peaks.get(span.phase, -1):
            self.peaks[span.phase], self.kinds[span.phase] = total, at_peak
        self.level = plus(self.level, span.left)
        self.flops[span.phase] = self.flops.get(span.phase, 0.0) + span.flops
        self.moved[span.phase] = self.moved.get(span.phase, 0.0) + span.moved


def plus(one: Bytes, other: Bytes) -> Bytes:
    """The sum by kind."""
    return {kind: one.get(kind, 0) + other.get(kind, 0) for kind in (*one, *(k for k in other if k not in one))}


Pick = Callable[[int], Sequence[Span]]
"""The spans of a pass in the form that a layer (by its number in the deep model) is run in."""


def deeper(spans: Sequence[Span], stand_in: Sequence[int], pick: Pick | None = None) -> Iterator[Span]:
    """The spans of the same pass through a deep model.

    Args:
        spans: of a pass through few layers, which each sweep of the pass visits all, upwards or downwards.
        stand_in: for each layer of the deep model the number of the one that stands for it.
        pick: where layers are run in different forms (computed twice or not), the same spans in the form of each.
    """
    few = max(stand_in) + 1
    position = 0
    while position < len(spans):
        if spans[position].layer < 0:
            yield spans[position]
            position += 1
            continue
        sweep = [span.layer for span in spans[position : position + few]]
        order = list(enumerate(stand_in))
        if sweep == list(range(few))[::-1]:
            order.reverse()
        elif sweep != list(range(few)):
            raise ValueError(f"a pass visits the layers {sweep}, not all {few} of them in order")
        for number, stand in order:
            place = position + sweep.index(stand)
            yield (spans if pick is None else pick(number))[place]
        position += few


def total(spans: Sequence[Span], stand_in: Sequence[int], pick: Pick | None = None) -> Sum:
    """What the pass through the deep model asks for."""
    found = Sum()
    for span in deeper(spans, stand_in, pick):
        found.add(span)
    return found
