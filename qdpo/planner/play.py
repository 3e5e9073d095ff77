"""Playing a run: the engine itself, its passes and checks, on a short model without values.

What comes out are spans (`qdpo.planner.spans`), which say what the deep model asks for. Nothing is computed, so a 7B
model takes as long as a toy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from qdpo.config.schema import RunConfig
from qdpo.data.pairs import TokenPair
from qdpo.engine import attention, varlen
from qdpo.engine.decoding import greedy
from qdpo.engine.device import CARD, Played, playing
from qdpo.engine.engine import Engine
from qdpo.engine.fuse import fuse_as_configured
from qdpo.engine.gradient_check import check_gradients
from qdpo.engine.kept import keep_dequantized
from qdpo.engine.layouts import Layout, Packed, Separate
from qdpo.engine.logps import PackScores
from qdpo.engine.recompute import checkpoint_layers, decoder_layers, running_again
from qdpo.engine.refusal import refusal
from qdpo.model.lora import attach, disable_dropout
from qdpo.planner.bare import bare, fill, held, quantizable, shape_of, shorten, with_values, without_values
from qdpo.planner.lengths import SMALL, PairLengths
from qdpo.planner.parts import GRADIENTS
from qdpo.planner.plays import Model
from qdpo.planner.spans import Bytes, Span
from qdpo.planner.watch import HEAD, Constants, Watch

FORWARD, BACKWARD = "forward", "backward"
REFERENCE, EVALUATION = "reference", "evaluation"
PROMPTS, TOKENS = "prompts", "tokens"


class Player:
    """A short model without values, and the engine on it.

    Args:
        base: content of the base's config.json.
        config: the run's configuration.
        card: what is played.
        dtype: the compute type.
        kernel: of attention, see `Plays`.

    Raises:
        UnavailableError: the model cannot be built, or its passes cannot be taken apart.

    Attributes:
        shape: sizes of the whole model.
        stand_in: for each layer of the whole model the number of the short one's that stands for it.
    """

    def __init__(
        self, base: dict[str, Any], config: RunConfig, card: Played, dtype: torch.dtype, kernel: str | None = None
    ) -> None:
        self.config, self.card, self.dtype, self.kernel = config, card, dtype, kernel
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.watch = Watch(512 if card.kind == "cuda" else 64)
        whole = bare(base, config.model.name, config.model.attn_implementation, dtype)
        self.shape = shape_of(whole)
        self.stand_in = shorten(whole)
        with torch.random.fork_rng(devices=[]):
            self.policy = self._policy(whole)
        # the norms keep real values until it is known which of them can be fused
        real = with_values(self.policy)
        with self._playing():
            fill(self.policy, dtype)
            self.engine = self._attach()
            without_values(real)
            fill(self.policy, dtype)
            self.static = self._static()
        self.parameters = [weight for weight in self.policy.parameters() if weight.requires_grad]
        self._mark_layers()
        self.kept = 0
        # a first pass, after which what lasts beyond a pass is there
        self.score([SMALL], True)

    def _policy(self, model: Any) -> Any:
        model.config.use_cache = False
        if self.config.model.quantization == "nf4":
            quantizable(model, self.config.model.double_quant, self.dtype)
        model.requires_grad_(False)
        policy = attach(model, self.config.lora, 0)
        if self.config.train.disable_dropout:
            disable_dropout(policy)
        return policy

    def _attach(self) -> Engine:
        """The engine as `qdpo.engine.attach` sets it up, whose checks need values: here structure decides."""
        model = self.policy.get_base_model()
        own = attention.install(model) or "sdpa"
        why = refusal(model.config, bool(getattr(model, "_is_stateful", False)))
        layout: Layout = Packed() if why is None else Separate()
        if why is not None:
            attention.install(model, own)
        elif self._takes_varlen(model):
            varlen.register()
            attention.install(model, varlen.NAME)
        fusion = fuse_as_configured(model, self.config.packing, compare=False)
        return Engine(model, CARD, self._autocast(), layout, fusion, own)

    def _autocast(self) -> Callable[[], contextlib.AbstractContextManager[object]]:
        half = self.dtype in (torch.bfloat16, torch.float16)
        return partial(torch.autocast, "cpu", self.dtype) if half else contextlib.nullcontext

    def _takes_varlen(self, model: Any) -> bool:
        """Whether attention runs in the variable-length kernel."""
        if self.card.kind != "cuda" or self.kernel == "sdpa":
            return False
        settings = model.config.get_text_config()
        if getattr(settings, "attn_logit_softcapping", None) is not None:
            return False
        width = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
        states = torch.empty(1, 1, 1, width, device=CARD, dtype=self.dtype)
        return varlen.fits(states, states, states)

    # ------------------------------------------------------------------------------------------------------------ marks

    @contextlib.contextmanager
    def _playing(self) -> Iterator[None]:
        with (
            playing(self.card),
            self.mode,
            self.watch,
            Constants(),
            # the watch sees the thread that it was entered in
            torch.autograd.set_multithreading_enabled(False),
        ):
            yield

    def _mark_layers(self) -> None:
        """Let the borders of layers be told to the watch, on the way up and on the way down."""
        layers = decoder_layers(self.engine.model)
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(self._enter, number))
        layers[-1].register_forward_hook(self._leave_last)
        for weight in self.parameters:
            weight.register_post_accumulate_grad_hook(lambda weight: self.watch.call(weight.grad, GRADIENTS))

    def _enter(self, number: int, module: nn.Module, args: Any) -> None:
        if running_again():
            return
        self.watch.border(self.watch.phase, number)
        if number and args[0].requires_grad:
            args[0].register_hook(lambda grad: self.watch.border(self.watch.phase, number - 1))

    def _leave_last(self, module: nn.Module, args: Any, output: Any) -> None:
        if running_again():
            return
        self.watch.border(self.watch.phase, -1, HEAD)
        hidden = output if isinstance(output, Tensor) else output[0]
        if hidden.requires_grad:
            last = len(decoder_layers(self.engine.model)) - 1
            hidden.register_hook(lambda grad: self.watch.border(self.watch.phase, last))

    def _static(self) -> list[Bytes]:
        """Bytes of base and adapter by kind: of each layer, and last of all the rest."""
        seen: set[int] = set()
        return [*(held(layer, seen) for layer in decoder_layers(self.policy)), held(self.policy, seen)]

    # ------------------------------------------------------------------------------------------------------------ plays

    def _form(self, recomputed: bool | None, kept: bool) -> None:
        """Which layers are computed twice (None: all but the last), and whether dequantized weights are kept."""
        checkpoint_layers(self.engine.model, {True: len(self.static) - 1, False: 0, None: None}[recomputed])
        layers = len(self.static) - 1 if kept else 0
        if layers != self.kept:
            self.kept = keep_dequantized(self.engine.model, layers)

    def model(self) -> Model:
        """What does not depend on packs."""
        return Model(
            self.shape,
            self.stand_in,
            self.static[:-1],
            self.static[-1],
            bool(self.engine.fusion.casts._copies),
        )

    def step(self, pack: Sequence[PairLengths], *, recomputed: bool | None, kept: bool, several: bool) -> list[Span]:
        """Forward and backward.

        Args:
            pack: the pairs of one pass.
            recomputed: all layers are computed twice; None: all but the last.
            kept: dequantized weights are kept.
            several: gradients of an earlier pack are there.
        """
        with self._playing():
            self._form(recomputed, kept)
            self.policy.train()
            if several:
                for weight in self.parameters:
                    weight.grad = torch.empty_like(weight)
                    self.watch.call(weight.grad, GRADIENTS)
            self.watch.take()
            self._forward_backward(pack)
            spans = self.watch.take()
            self.policy.zero_grad()
            self._form(None, False)
        return spans

    def _forward_backward(self, pack: Sequence[PairLengths]) -> None:
        pairs = tokens_of(pack)

        def backward(loss: Tensor) -> None:
            self.watch.border(BACKWARD, -1, HEAD)
            loss.backward()

        self.watch.border(FORWARD)
        self.engine.step(pairs, [list(range(len(pairs)))], _loss, backward)

    def score(self, pack: Sequence[PairLengths], adapters: bool, kept: bool = False) -> list[Span]:
        """A pass without gradients.

        Args:
            pack: its pairs.
            adapters: whether they are applied.
            kept: dequantized weights are kept.
        """
        with self._playing(), self._side(adapters):
            self._form(None, kept)
            spans = self._score(pack, EVALUATION if adapters else REFERENCE)
            self._form(None, False)
        return spans

    def _score(self, pack: Sequence[PairLengths], phase: str) -> list[Span]:
        self.watch.take()
        self.watch.border(phase)
        self.engine.score_all(tokens_of(pack), 2 * sum(pair.packed for pair in pack))
        return self.watch.take()

    def _side(self, adapters: bool) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if adapters else self.policy.disable_adapter()

    def answers(self, prompts: int, length: int) -> list[Span]:
        """The pass over prompts of one length, and the first one over a token of each."""
        calls = 0

        def before(*args: Any) -> None:
            nonlocal calls
            self.watch.border(TOKENS if calls else PROMPTS)
            calls += 1

        with self._playing(), torch.no_grad(), self.engine.autocast():
            self.policy.eval()
            hook = self.engine.model.register_forward_pre_hook(before)
            self.watch.take()
            try:
                greedy(self.engine.model, [[2] * length] * prompts, frozenset(), 2)
            finally:
                hook.remove()
            return self.watch.take()

    def check(self) -> list[Span]:
        """The comparison of gradients before the first step."""
        with self._playing():
            self._form(None, False)
            self.watch.take()
            self.watch.border("gradient check")
            check_gradients(self.engine)
            self.policy.zero_grad()
            return self.watch.take()


def _loss(group: list[int], scores: PackScores) -> Tensor:
    """DPO's, as far as memory goes: a few numbers of every pair."""
    chosen, rejected = scores.logps.chunk(2)
    return -torch.nn.functional.logsigmoid(chosen - rejected).sum()


def tokens_of(pack: Sequence[PairLengths]) -> list[TokenPair]:
    """Pairs of these lengths."""
    return [
        TokenPair(
            row,
            [1] * pair.prompt,
            [2] * pair.shared + [3] * (pair.chosen - pair.shared),
            [2] * pair.shared + [4] * (pair.rejected - pair.shared),
        )
        for row, pair in enumerate(pack)
    ]
