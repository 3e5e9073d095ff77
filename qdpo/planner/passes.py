"""One pass of the packed engine over one pack, played with sizes in the place of tensors.

Follows `qdpo.engine` function by function: which tensors the fused functions keep, which exist side by side at each
point, what a checkpointed layer keeps and computes again. N is the pack's tokens, h the hidden width, b the bytes of an
activation.
"""

from __future__ import annotations

from qdpo.engine.sizes import CHUNK_ROWS, TILE
from qdpo.planner.attention import Attention, mask_bytes
from qdpo.planner.ledger import Ledger
from qdpo.planner.lengths import PackShape
from qdpo.planner.parts import BLOCK, LORA, checkpointed_layers
from qdpo.planner.settings import Settings
from qdpo.planner.shapes import Shape


class Pass:
    """A pass over a pack, counted in a ledger."""

    def __init__(self, shape: Shape, pack: PackShape, settings: Settings, ledger: Ledger) -> None:
        self.shape, self.pack, self.settings, self.ledger = shape, pack, settings, ledger
        self.lora, self.packing = settings.config.lora, settings.config.packing
        self.n, self.b = pack.tokens, settings.b
        self.hidden = self.n * shape.hidden * self.b
        self.inner = self.n * shape.intermediate * self.b
        self.q, self.kv = self.n * shape.q * self.b, self.n * shape.kv * self.b
        self.projected = self.n * self.lora.r * self.b
        self.scored = pack.scored * shape.hidden * self.b
        places = self.n * (2 * 8 + 2 * shape.head_dim * self.b) + pack.scored * 4 * 8
        self.tables = places + mask_bytes(shape, pack, self.b)
        """Ids, positions, the rotation's tables, masks."""
        unfused = self.b < 4 and not self.packing.fused_norm
        self.beside = 4 * self.n + (4 * self.n * shape.hidden if unfused else 0)
        """What a norm keeps besides its output: one number a row; unfused, an fp32 copy of its input too."""
        self.plus_one = shape.kind.startswith("gemma")

    # ------------------------------------------------------------------------------------------------------ whole pass

    def train(self) -> None:
        """Forward and backward; what the pass holds at its end is the adapter's gradients."""
        checkpointed = checkpointed_layers(self.shape, self.settings.config)
        layers = [Layer(self, number) for number in range(self.shape.layers)]
        with self.ledger.phase("forward"):
            self._begin()
            for layer in layers:
                layer.forward(keep=layer.number >= checkpointed)
            self._head(grad=True)
        with self.ledger.phase("backward"):
            self._head_backward()
            for layer in reversed(layers):
                if layer.number < checkpointed:
                    layer.forward(keep=True, again=True)
                layer.backward()
            self.ledger.drop(self.tables)
            self.ledger.drop(self.hidden)  # the gradient of the embedding's output

    def score(self, adapters: bool) -> None:
        """A pass without gradients."""
        with self.ledger.phase("evaluation" if adapters else "reference"):
            self._begin()
            for number in range(self.shape.layers):
                Layer(self, number).forward(keep=False, adapters=adapters)
                # the layer's input; the embedding's output has a name until the end
                self.ledger.drop(self.hidden if number else 0)
            self._head(grad=False)
            self.ledger.drop(self.tables)

    def _begin(self) -> None:
        """The tables and the embedding's output."""
        self.ledger.hold(self.tables)
        self.ledger.briefly(2 * self.hidden if self.plus_one else self.hidden)
        self.ledger.hold(self.hidden)

    # ------------------------------------------------------------------------------------------------------------ head

    def _head(self, grad: bool) -> None:
        """The last norm, and the scored places chunk by chunk; with gradients their (S, h) slope stays."""
        self.norm_forward()
        self.ledger.hold(self.scored)
        self.ledger.drop(self.hidden)
        if not grad:
            # the last layer's output, what the norm kept, and the embedding's output
            self.ledger.drop(2 * self.hidden + self.beside)
        with self.ledger.kind("log-probabilities"):
            if grad:
                self.ledger.hold(self.scored)
            chunk = min(CHUNK_ROWS, self.pack.scored)
            tile = TILE["cuda" if self.settings.cuda else "cpu"]
            columns = min(self.shape.vocab, max(tile // max(chunk, 1), 1))
            # fp32 logits and their exponentials, of a tile; soft-capped ones with what their slope needs
            copies = 5 if self.shape.logit_cap else 3
            # p W in fp32 and in the head's type
            states = chunk * self.shape.hidden * (4 + 2 * self.b) if grad else 0
            self.ledger.briefly(4 * copies * chunk * columns + states)
        self.ledger.drop(self.scored)

    def _head_backward(self) -> None:
        self.ledger.hold(self.scored)  # the slope times what the loss says
        self.ledger.hold(self.hidden)  # spread over the row
        with self.ledger.kind("log-probabilities"):
            self.ledger.drop(self.scored)
        self.ledger.drop(self.scored)
        self.ledger.briefly(self.hidden)
        self.norm_backward()
        # the gradient stays; the last layer's output and the norm's inverse go
        self.ledger.drop(self.hidden + self.beside)

    # ------------------------------------------------------------------------------------------------------- the parts

    def norm_forward(self) -> None:
        """RMSNorm: computed in fp32; its output and what it keeps are held."""
        size = self.n * self.shape.hidden
        half = self.b < 4
        # the input's fp32 copy, the result, and copies in the activations' type
        copies = half + (not self.plus_one)
        self.ledger.briefly((4 * size if half else 0) + 4 * size + copies * self.b * size)
        self.ledger.hold(self.hidden + self.beside)

    def norm_backward(self) -> None:
        """Its gradient (not held), beside the one that came."""
        self.ledger.briefly(12 * self.n * self.shape.hidden)

    def dequantized(self, weights: float) -> float:
        """Bytes of a 4-bit layer's weights while they are used, and of its scales in fp32."""
        return weights * (self.b + 4 / BLOCK) if self.settings.config.model.quantization == "nf4" else 0.0


class Layer:
    """One decoder layer of a pass."""

    def __init__(self, whole: Pass, number: int) -> None:
        self.p, self.number = whole, number
        self.ledger, self.shape, self.packing = whole.ledger, whole.shape, whole.packing
        self.attention = Attention(whole.shape, whole.pack, whole.b, number)
        # the last layer's MLP runs on the rows that predict something (qdpo.engine.scored_rows)
        self.pruned = number == self.shape.layers - 1 and self.packing.fused_mlp and self.packing.skip_unscored
        share = whole.pack.scored_rows / whole.n if self.pruned else 1.0
        self.inner, self.rows, self.projected = share * whole.inner, share * whole.hidden, share * whole.projected
        self.mlp_weight = whole.dequantized(self.shape.hidden * self.shape.intermediate)
        self.q_weight = whole.dequantized(self.shape.hidden * self.shape.q)

    def forward(self, keep: bool, *, adapters: bool = True, again: bool = False) -> None:
        """From the input (held) to the output (held beside it); with `keep`, what the backward pass needs is held.

        Args:
            keep: the layer is not checkpointed.
            adapters: whether they are applied.
            again: the second run of a checkpointed layer, whose output nobody looks at.
        """
        p, led, sandwich = self.p, self.ledger, self.shape.sandwich
        projected = p.projected if adapters else 0
        p.norm_forward()
        self._attention(keep, projected)
        led.briefly(self.q_weight + p.hidden)
        led.hold(p.hidden + (projected if keep else 0))  # o_proj
        if not keep:
            led.drop(p.q)
        if sandwich:
            self._norm_behind(keep)
        led.briefly(p.hidden)  # the residual sum
        if not keep:
            led.drop(p.hidden + p.beside)  # the first norm's output
        p.norm_forward()
        self._mlp(keep, adapters, again and not sandwich)
        if sandwich:
            self._norm_behind(keep)
        if again:
            led.drop(p.hidden if sandwich else 0)
            return
        led.briefly(p.hidden)
        if not keep:
            led.drop(2 * p.hidden + p.beside)  # the residual in the middle, the second norm's output

    def _norm_behind(self, keep: bool) -> None:
        """Gemma 2's norm of what attention or the MLP gives."""
        self.p.norm_forward()
        self.ledger.drop(0 if keep else self.p.hidden + self.p.beside)

    def _attention(self, keep: bool, projected: float) -> None:
        p, led = self.p, self.ledger
        both = p.q + p.kv
        led.hold(both + p.kv + (3 * projected if keep else 0))
        if projected and not keep:
            led.briefly(projected)
        if not self.packing.fused_lora and keep:
            led.hold(self._unfused_lora())
        led.briefly(self.q_weight)
        if self.shape.qk_norm:
            led.briefly(p.q + 8 * p.n * self.shape.q)
            # normalised copies; the first ones stay for the backward pass
            led.hold(both + self._head_norms() if keep else 0)
        led.briefly(3 * p.q)
        led.hold(p.q)
        led.briefly(3 * p.kv)
        led.hold(p.kv)
        led.drop(both)
        self.attention.forward(led, keep)

    def _head_norms(self) -> int:
        """Bytes that the norms of queries and keys keep: one number a head and row."""
        return 4 * self.p.n * (self.shape.heads + self.shape.kv_heads)

    def _mlp(self, keep: bool, adapters: bool, skip_output: bool) -> None:
        """From the normed input (held) to the output (held); the input stays where it is needed."""
        p, led, weight = self.p, self.ledger, self.mlp_weight
        if self.pruned:
            led.hold(self.rows)
        led.briefly(self.inner + weight)
        if self.packing.fused_mlp and adapters:
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
        if not keep and self.packing.fused_mlp and adapters:
            led.drop(saved)
        if skip_output:
            led.drop(p.hidden)

    def _unfused_lora(self) -> float:
        """What PEFT's own forward keeps beside: the input in the adapter's fp32, and in half precision again."""
        targets = self.p.lora.target_modules
        widths = sum(columns for name, (_, columns) in self.shape.projections.items() if name in targets)
        return self.p.n * widths * (0 if self.p.b == 4 else 4 + self.p.b)

    def backward(self) -> None:
        """From the output's gradient (held) to the input's (held in its place); everything kept is dropped."""
        p, led = self.p, self.ledger
        self._norm_behind_backward()  # and the MLP's output
        led.briefly(3 * self.inner + 2 * self.rows + self.mlp_weight)
        led.hold(p.hidden)
        led.briefly(self.rows if self.pruned else 0)
        kept = 2 if self.packing.fused_mlp else 4
        led.drop(kept * self.inner + self.rows + 3 * self.projected)  # and the MLP's input
        if self.shape.sandwich:
            led.drop(p.hidden)
        p.norm_backward()
        led.drop(p.hidden)  # its gradient is added to the residual's
        led.drop(p.hidden + p.beside)  # the residual in the middle
        self._gradients("gate_proj", "up_proj", "down_proj")
        self._norm_behind_backward()
        led.briefly(p.q + self.q_weight)
        led.hold(p.q)
        led.drop(p.q + p.projected + (p.hidden if self.shape.sandwich else 0))  # o_proj's input
        self.attention.backward(led)
        led.briefly(3 * p.q)
        if self.shape.qk_norm:
            led.briefly(12 * p.n * self.shape.q)
            led.drop(p.q + p.kv + self._head_norms())
        led.briefly(2 * p.hidden + self.q_weight)
        led.drop(p.q + 2 * p.kv)
        if not self.packing.fused_lora:
            led.drop(self._unfused_lora())
        led.hold(p.hidden)
        led.drop(p.hidden + p.beside + 3 * p.projected)  # the first norm's output
        p.norm_backward()
        led.drop(p.hidden)
        led.drop(p.hidden)  # the layer's input
        self._gradients("q_proj", "k_proj", "v_proj", "o_proj")

    def _norm_behind_backward(self) -> None:
        """Gemma 2's norm: from its output's gradient to its input's, both held; what it kept goes."""
        if self.shape.sandwich:
            self.ledger.hold(self.p.hidden)
            self.p.norm_backward()
            self.ledger.drop(self.p.hidden + self.p.beside)

    def _gradients(self, *names: str) -> None:
        """The adapter's gradients of some projections, where no earlier micro-batch of the step has brought them."""
        if self.p.settings.several:
            return
        shapes, lora = self.shape.projections, self.p.lora
        count = sum(sum(shapes[name]) for name in names if name in lora.target_modules) * lora.r
        with self.ledger.kind("gradients"):
            self.ledger.hold(LORA * count)
