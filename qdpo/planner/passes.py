"""One pass of the packed engine over one pack, played with sizes in the place of tensors.

Follows `qdpo.engine` function by function: which tensors the fused functions keep, which exist side by side at each
point, what a checkpointed layer keeps and computes again. N is the pack's tokens, h the hidden width, b the bytes of an
activation.
"""

from __future__ import annotations

from dataclasses import dataclass

from qdpo.planner.attention import Attention, mask_bytes
from qdpo.planner.ledger import Ledger
from qdpo.planner.lengths import PackShape
from qdpo.planner.shapes import Shape

CHUNK_ROWS = 256
"""Rows that the head scores at once (qdpo.engine.logps, which needs torch)."""

TILE = {"cpu": 2**18, "cuda": 2**23}
"""Logits that exist at once, likewise."""


@dataclass(frozen=True)
class PassSettings:
    """What decides about a pass besides model and pack.

    Attributes:
        b: bytes of an activation: 2 in half precision, 4 in fp32.
        rank: of the adapter.
        targets: names of the adapted linear layers.
        quantized: linear weights are in 4 bits and dequantized where they are used.
        weight_bytes: bytes of a dequantized (or dense) weight.
        checkpointed: layers, from the first, whose activations are computed again.
        fused_lora: adapted linear layers run as one function.
        fused_mlp: the gated MLP runs as one function.
        fused_norm: RMSNorm runs as one function.
        skip_unscored: the last layer's MLP is run on the rows that predict something.
        gradients_held: the adapter's gradients are there from an earlier micro-batch of the step.
        tile: logits that exist at once.
    """

    b: int
    rank: int
    targets: tuple[str, ...]
    quantized: bool
    weight_bytes: int
    checkpointed: int
    fused_lora: bool = True
    fused_mlp: bool = True
    fused_norm: bool = True
    skip_unscored: bool = True
    gradients_held: bool = False
    tile: int = TILE["cuda"]


class Pass:
    """A pass over a pack.

    Args:
        shape: the model's.
        pack: the row.
        settings: see there.
        ledger: where it is counted.
    """

    def __init__(self, shape: Shape, pack: PackShape, settings: PassSettings, ledger: Ledger) -> None:
        self.shape, self.pack, self.settings, self.ledger = shape, pack, settings, ledger
        self.n, self.b = pack.tokens, settings.b
        self.hidden = self.n * shape.hidden * self.b
        self.inner = self.n * shape.intermediate * self.b
        self.q, self.kv = self.n * shape.q * self.b, self.n * shape.kv * self.b
        self.projected = self.n * settings.rank * self.b
        self.masks = mask_bytes(shape, pack, settings.b)

    # ------------------------------------------------------------------------------------------------------ whole pass

    def train(self) -> None:
        """Forward and backward; what the pass holds at its end is the adapter's gradients."""
        layers, settings = self.shape.layers, self.settings
        kept: list[Layer | None] = []
        with self.ledger.phase("forward"):
            self._begin()
            for number in range(layers):
                if number < settings.checkpointed:
                    Layer(self, number).forward(keep=False)
                    kept.append(None)
                else:
                    layer = Layer(self, number)
                    layer.forward(keep=True)
                    kept.append(layer)
            self._head(grad=True)
        with self.ledger.phase("backward"):
            self._head_backward()
            for number in reversed(range(layers)):
                again = kept[number]
                if again is None:
                    again = Layer(self, number)
                    again.forward(keep=True, again=True)
                again.backward()
            self._end()
            self.ledger.drop(self.hidden)  # the gradient of the embedding's output

    def score(self, adapters: bool) -> None:
        """A pass without gradients."""
        with self.ledger.phase("reference" if not adapters else "evaluation"):
            self._begin()
            for number in range(self.shape.layers):
                Layer(self, number).forward(keep=False, adapters=adapters)
                # the layer's input; the embedding's output has a name until the end
                self.ledger.drop(self.hidden if number else 0)
            self._head(grad=False)
            self._end()

    def _begin(self) -> None:
        """Ids, positions, the rotation's tables, the embedding's output."""
        self.ledger.hold(self._tables())
        self.ledger.briefly(2 * self.hidden if self.shape.kind.startswith("gemma") else self.hidden)
        self.ledger.hold(self.hidden)

    def _end(self) -> None:
        self.ledger.drop(self._tables())

    def _tables(self) -> float:
        places = self.n * (2 * 8 + 2 * self.shape.head_dim * self.b) + self.pack.scored * 4 * 8
        return places + self.masks

    # ------------------------------------------------------------------------------------------------------------ head

    def _head(self, grad: bool) -> None:
        """The last norm, and the scored places chunk by chunk; with gradients their (S, h) slope stays."""
        rows = self.pack.scored * self.shape.hidden * self.b
        self.norm_forward(self.shape.hidden)
        self.ledger.hold(rows)
        self.ledger.drop(self.hidden)
        if not grad:
            # the last layer's output, what the norm kept, and the embedding's output
            self.ledger.drop(2 * self.hidden + self.beside(self.shape.hidden))
        with self.ledger.kind("log-probabilities"):
            if grad:
                self.ledger.hold(rows)
            chunk = min(CHUNK_ROWS, self.pack.scored)
            columns = min(self.shape.vocab, max(self.settings.tile // max(chunk, 1), 1))
            # fp32 logits and their exponentials, of a tile; soft-capped ones with what their slope needs
            copies = 5 if self.shape.logit_cap else 3
            # p W in fp32 and in the head's type
            states = chunk * self.shape.hidden * (4 + 2 * self.b) if grad else 0
            self.ledger.briefly(4 * copies * chunk * columns + states)
        self.ledger.drop(rows)

    def _head_backward(self) -> None:
        rows = self.pack.scored * self.shape.hidden * self.b
        self.ledger.hold(rows)  # the slope times what the loss says
        self.ledger.hold(self.hidden)  # spread over the row
        with self.ledger.kind("log-probabilities"):
            self.ledger.drop(rows)
        self.ledger.drop(rows)
        self.ledger.briefly(self.hidden)
        self.norm_backward(self.shape.hidden)
        # the gradient stays; the last layer's output and the norm's inverse go
        self.ledger.drop(self.hidden + self.beside(self.shape.hidden))

    # ------------------------------------------------------------------------------------------------------- the parts

    def norm_forward(self, width: int) -> None:
        """RMSNorm over `width` columns: computed in fp32; its output and one number a row are held."""
        size = self.n * width
        plus_one = self.shape.kind.startswith("gemma")
        wide = 4 * size if self.b < 4 else 0
        last = 0 if plus_one and self.b == 4 else self.b * size
        self.ledger.briefly(wide + 4 * size + max(last + (0 if plus_one or self.b == 4 else self.b * size), 0))
        self.ledger.briefly(wide + 4 * size)
        self.ledger.hold(self.b * size + self.beside(width))

    def beside(self, width: int) -> float:
        """What a norm keeps besides its output: one number a row; unfused, an fp32 copy of its input too."""
        copy = 4 * self.n * width if self.b < 4 and not self.settings.fused_norm else 0
        return 4 * self.n + copy

    def norm_backward(self, width: int) -> None:
        """Its gradient (not held), beside the one that came."""
        self.ledger.briefly(12 * self.n * width)

    def dequantized(self, weights: float) -> float:
        """Bytes of a 4-bit layer's weights while they are used, and of its scales in fp32."""
        return weights * (self.settings.weight_bytes + 4 / 64) if self.settings.quantized else 0.0


class Layer:
    """One decoder layer of a pass.

    Args:
        whole: the pass.
        number: which layer.
    """

    def __init__(self, whole: Pass, number: int) -> None:
        self.p, self.number = whole, number
        self.ledger, self.shape, self.settings = whole.ledger, whole.shape, whole.settings
        self.attention = Attention(whole.shape, whole.pack, whole.b, number)
        # the last layer's MLP runs on the rows that predict something (qdpo.engine.scored_rows)
        settings = whole.settings
        self.pruned = number == whole.shape.layers - 1 and settings.fused_mlp and settings.skip_unscored
        share = whole.pack.scored_rows / whole.n if self.pruned else 1.0
        self.inner, self.rows, self.projected = share * whole.inner, share * whole.hidden, share * whole.projected

    def forward(self, keep: bool, *, adapters: bool = True, again: bool = False) -> None:
        """From the input (held) to the output (held beside it); with `keep`, what the backward pass needs is held.

        Args:
            keep: the layer is not checkpointed.
            adapters: whether they are applied.
            again: the second run of a checkpointed layer, whose output nobody looks at.
        """
        p, led = self.p, self.ledger
        small = p.beside(self.shape.hidden)
        projected = p.projected if adapters else 0
        p.norm_forward(self.shape.hidden)
        self._attention(keep, projected)
        led.briefly(self.p.dequantized(self.shape.hidden * self.shape.q) + p.hidden)
        led.hold(p.hidden + (projected if keep else 0))  # o_proj
        if not keep:
            led.drop(p.q)
        if self.shape.sandwich:
            p.norm_forward(self.shape.hidden)
            led.drop(0 if keep else p.hidden + small)
        led.hold(p.hidden)  # the residual sum
        led.drop(p.hidden)
        if not keep:
            led.drop(p.hidden + small)  # the first norm's output
        p.norm_forward(self.shape.hidden)
        self._mlp(keep, adapters, again and not self.shape.sandwich)
        if self.shape.sandwich:
            p.norm_forward(self.shape.hidden)
            led.drop(0 if keep else p.hidden + small)
        if again:
            if self.shape.sandwich:
                led.drop(p.hidden)
            return
        led.hold(p.hidden)
        led.drop(p.hidden)
        if not keep:
            led.drop(2 * p.hidden + small)  # the residual in the middle, the second norm's output

    def _attention(self, keep: bool, projected: float) -> None:
        p, led = self.p, self.ledger
        both = p.q + p.kv
        led.hold(both + p.kv + (3 * projected if keep else 0))
        if projected and not keep:
            led.briefly(projected)
        if not self.settings.fused_lora and keep:
            led.hold(self._unfused_lora())
        led.briefly(p.dequantized(self.shape.q * self.shape.hidden))
        if self.shape.qk_norm:
            led.briefly(p.q + 8 * p.n * self.shape.q)
            # normalised copies; the first ones stay for the backward pass
            led.hold(both if keep else 0)
            led.hold(4 * p.n * (self.shape.heads + self.shape.kv_heads) if keep else 0)
        led.briefly(3 * p.q)
        led.hold(p.q)
        led.briefly(3 * p.kv)
        led.hold(p.kv)
        led.drop(both)
        self.attention.forward(led, keep)

    def _mlp(self, keep: bool, adapters: bool, skip_output: bool) -> None:
        """From the normed input (held) to the output (held); the input stays where it is needed."""
        p, led = self.p, self.ledger
        weight = p.dequantized(self.shape.hidden * self.shape.intermediate)
        if self.pruned:
            led.hold(self.rows)
        led.briefly(self.inner + weight)
        if self.settings.fused_mlp and adapters:
            saved = 2 * self.inner + 3 * self.projected
            led.hold(saved + self.inner)
            led.briefly(weight + (0 if skip_output else self.rows))
        else:
            saved = 4 * self.inner + 3 * (self.projected if adapters else 0)
            led.briefly(3 * self.inner + weight)
            led.hold((saved if keep else 0) + self.inner)
            led.briefly(weight + self.rows)
        led.hold(p.hidden)  # with `skip_output` one row stands for it; every caller finds an output
        led.drop(self.inner)
        if self.pruned:
            led.briefly(self.rows + p.hidden)
            led.drop(p.hidden if keep else self.rows)  # the normed input; the rows are enough
        if not keep and self.settings.fused_mlp and adapters:
            led.drop(saved)
        if skip_output:
            led.drop(p.hidden)

    def _unfused_lora(self) -> float:
        """What PEFT's own forward keeps beside: the input in the adapter's fp32, and in half precision again."""
        widths = sum(columns for name, (_, columns) in self.shape.projections.items() if name in self.settings.targets)
        return self.p.n * widths * (0 if self.p.b == 4 else 4 + self.p.b)

    def backward(self) -> None:
        """From the output's gradient (held) to the input's (held in its place); everything kept is dropped."""
        p, led = self.p, self.ledger
        small = p.beside(self.shape.hidden)
        weight = p.dequantized(self.shape.hidden * self.shape.intermediate)
        if self.shape.sandwich:
            led.hold(p.hidden)
            p.norm_backward(self.shape.hidden)
            led.drop(p.hidden + small)  # the MLP's output
        fused = self.settings.fused_mlp
        led.briefly(3 * self.inner + 2 * self.rows + weight)
        led.hold(p.hidden)
        led.briefly(self.rows if self.pruned else 0)
        led.drop((2 if fused else 4) * self.inner + self.rows + 3 * self.projected)  # and the MLP's input
        if self.shape.sandwich:
            led.drop(p.hidden)
        p.norm_backward(self.shape.hidden)
        led.drop(p.hidden)  # its gradient is added to the residual's
        led.drop(p.hidden + small)  # the residual in the middle
        if not self.settings.gradients_held:
            self._gradients(("gate_proj", "up_proj", "down_proj"))
        extra = 0.0
        if self.shape.sandwich:
            led.hold(p.hidden)
            extra = p.hidden
            p.norm_backward(self.shape.hidden)
            led.drop(p.hidden + small)
        led.briefly(p.q + p.dequantized(self.shape.hidden * self.shape.q))
        led.hold(p.q)
        led.drop(p.q + p.projected + extra)  # o_proj's input
        self.attention.backward(led)
        led.briefly(3 * p.q)
        if self.shape.qk_norm:
            led.briefly(12 * p.n * self.shape.q)
            led.drop(p.q + p.kv + 4 * p.n * (self.shape.heads + self.shape.kv_heads))
        led.briefly(2 * p.hidden + p.dequantized(self.shape.hidden * self.shape.q))
        led.drop(p.q + 2 * p.kv)
        if not self.settings.fused_lora:
            led.drop(self._unfused_lora())
        led.hold(p.hidden)
        led.drop(p.hidden + small + 3 * p.projected)  # the first norm's output
        p.norm_backward(self.shape.hidden)
        led.drop(p.hidden)
        led.drop(p.hidden)  # the layer's input
        if not self.settings.gradients_held:
            self._gradients(("q_proj", "k_proj", "v_proj", "o_proj"))

    def _gradients(self, names: tuple[str, ...]) -> None:
        shapes = self.shape.projections
        count = sum(sum(shapes[name]) for name in names if name in self.settings.targets) * self.settings.rank
        with self.ledger.kind("gradients"):
            self.ledger.hold(4 * count)
