"""What attention over a packed row takes and keeps (the sizes of `qdpo.engine.attention`)."""

from __future__ import annotations

from dataclasses import dataclass

from qdpo.engine.sizes import LOOP_FROM
from qdpo.planner.ledger import Ledger
from qdpo.planner.lengths import PackShape
from qdpo.planner.shapes import Shape


@dataclass(frozen=True)
class Call:
    """One call of scaled dot-product attention.

    Attributes:
        batch: rows B.
        own: query tokens L, padding included.
        total: key tokens, prefix and own, padding included.
        masked: it takes an explicit mask.
        copied: keys and values are copied for it: they are no plain part of the packed row.
    """

    batch: int
    own: int
    total: int
    masked: bool
    copied: bool


def calls(pack: PackShape, window: int | None) -> tuple[list[Call], bool]:
    """The calls for a pack in one layer, and whether they are a loop over segments (else: padded batches)."""

    def call(batch: int, own: int, prefix: int, copied: bool) -> Call:
        masked = prefix > 0 or (window is not None and own > window)
        return Call(batch, own, own + prefix, masked, copied)

    segments = pack.segments
    if pack.tokens >= LOOP_FROM * len(pack.pairs):
        return [call(1, own, prefix, prefix > 0) for own, prefix in segments], True
    kinds = ([s for s in segments if not s[1]], [s for s in segments if s[1]])
    return [call(len(kind), max(s[0] for s in kind), max(s[1] for s in kind), True) for kind in kinds if kind], False


def mask_bytes(shape: Shape, pack: PackShape, b: int) -> float:
    """Bytes of the masks of a pack, which are made in the first layer and kept for the others."""
    windows = {shape.window_of(layer) for layer in range(shape.layers)}
    masked = {
        # in a loop, segments of the same lengths share one
        (window, call if not looped else (call.own, call.total)): call
        for window in windows
        for found, looped in [calls(pack, window)]
        for call in found
        if call.masked
    }
    each = 1 if shape.score_cap else b
    return float(sum(call.batch * call.own * -(-call.total // 8) * 8 * each for call in masked.values()))


class Attention:
    """Attention of one layer (by its number) on one pack; `b` are the bytes of an activation."""

    def __init__(self, shape: Shape, pack: PackShape, b: int, layer: int) -> None:
        self.shape, self.b = shape, b
        self.calls, self.looped = calls(pack, shape.window_of(layer))
        self.row = pack.tokens * shape.q * b
        """Bytes of all heads of the row."""
        self.narrow = pack.tokens * shape.kv * b
        """Bytes of its key (or value) heads."""
        self.repeated = 2 * self.row if shape.heads > shape.kv_heads else 0
        self.kept = 0.0
        """Bytes that the backward pass needs, after `forward`."""

    def forward(self, ledger: Ledger, keep: bool) -> None:
        """From rotated queries, keys and values (held) to the output (held); what is not needed again is dropped."""
        given = self.row + 2 * self.narrow
        ledger.hold(self.repeated)
        kept = outputs = 0.0
        for call in self.calls:
            queries = call.batch * call.own * self.shape.q * self.b
            keys = call.batch * call.total * self.shape.q * self.b
            copies = (2 * keys if call.copied else 0) + (0 if self.looped else queries)
            ledger.hold(copies)
            saved = copies + self._call(ledger, call, queries, keys, keep) + queries
            kept += saved
            outputs += queries
            if not self.looped:
                ledger.hold(queries)  # flattened
            ledger.drop(0 if keep else saved - (queries if self.looped else 0))
        if self.looped:
            ledger.hold(self.row)
            ledger.briefly(self.row)
            ledger.drop(0 if keep else outputs)
        else:
            # all groups one after the other, and the row taken from them
            ledger.briefly(outputs + self.row)
            ledger.hold(self.row)
            ledger.drop(outputs)
        # in a loop, queries, and keys and values of the prefixes, are parts of these
        whole = self.row + (self.repeated or 2 * self.narrow) if keep and self.looped else 0
        ledger.drop(given + self.repeated - whole)
        self.kept = kept + whole

    def _call(self, ledger: Ledger, call: Call, queries: float, keys: float, keep: bool) -> float:
        """One call; returns what it holds besides its inputs and output, having taken the output too."""
        squares = call.batch * self.shape.heads * call.own * call.total
        mask = call.batch * call.own * call.total
        if not self.shape.score_cap:
            # one fp32 normaliser a query and head; the mask is the pack's, made once
            saved = 4 * call.batch * call.own * self.shape.heads
            ledger.hold(saved + queries)
            return saved
        # the product wants its batches side by side
        copies = 0 if self.looped else queries + 2 * keys
        tanh, soft = squares * self.b, squares * 4
        cast = squares * self.b if self.b < 4 else 0
        most = max(2 * squares * self.b, squares * self.b + soft + cast)
        with ledger.kind("attention scores"):
            ledger.briefly(copies + (tanh if keep else 0) + most)
        if not keep:
            ledger.hold(queries)
            return 0.0
        saved = tanh + soft + cast + mask
        ledger.hold(copies + saved + queries)
        ledger.drop(copies)
        return saved

    def backward(self, ledger: Ledger) -> None:
        """From the output's gradient (held) to those of queries, keys and values (held); `kept` is dropped.

        The last segments come first, when everything kept is still there.
        """
        b, heads = self.b, self.shape.heads
        wide = 3 * self.row
        # the gradient of all groups' outputs, one after the other
        padded = 0.0 if self.looped else sum(call.batch * call.own * self.shape.q * b for call in self.calls)
        ledger.hold(padded)
        for number, call in enumerate(reversed(self.calls)):
            queries = call.batch * call.own * self.shape.q * b
            keys = call.batch * call.total * self.shape.q * b
            squares = call.batch * heads * call.own * call.total
            extra = queries + 2 * keys
            if self.shape.score_cap:
                extra += squares * (8 + b if b < 4 else 8)
            if not self.looped:
                extra += queries
            ledger.briefly(extra + (self.row if number else 0))
            ledger.hold(0 if number else wide)
            ledger.briefly(extra + self.row)
        ledger.drop(padded + self.kept + self.row)  # with the output's gradient
        if self.repeated:
            ledger.briefly(self.row + self.narrow)
            ledger.drop(2 * (self.row - self.narrow))
