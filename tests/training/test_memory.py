"""Before the first step: memory that is left becomes speed, as measured, and is given back when it is lacking."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine.toys import build
from planner.test_spans import PACK, SIZES, config

from qdpo.engine import kept
from qdpo.engine.device import Played
from qdpo.engine.recompute import checkpoint_layers, decoder_layers
from qdpo.planner.bare import bare
from qdpo.planner.play import Player
from qdpo.planner.spans import total
from qdpo.training.stages import memory
from qdpo.training.stages.memory import Layers, fill_card


class Pretended:
    """The longest micro-batch on a card on which each layer has its price.

    Args:
        layers: what is chosen.
        activations: bytes of a layer that is not computed twice.
        weights: bytes of a layer whose weights are kept.
        room: bytes that the card has, above which a pass fails.
    """

    def __init__(self, layers: Layers, activations: int, weights: int, room: int) -> None:
        self.layers, self.activations, self.weights, self.room = layers, activations, weights, room
        self.tried: list[tuple[int, int]] = []

    def peak(self) -> int | None:
        """1,000 bytes, and what is held beyond the least."""
        self.tried.append((self.layers.recomputed, self.layers.kept))
        extra = self.layers.total - 1 - self.layers.recomputed
        taken = 1000 + extra * self.activations + self.layers.kept * self.weights
        return taken if taken <= self.room else None

    def peak_of_scoring(self) -> int:
        """A pass of an evaluation."""
        return 1200

    def text(self) -> str:
        """Its name."""
        return "the longest"


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> Layers:
    model = build("llama", torch.float32)
    monkeypatch.setattr(kept, "bytes_to_keep", lambda model, count: 100 * count)
    monkeypatch.setattr(kept, "keep_dequantized", lambda model, count: count)
    total = len(decoder_layers(model))
    # as many layers as a 7B has: only their number matters here
    found = Layers(model, 31, 0, 32, (True, True))
    monkeypatch.setattr(Layers, "set", set_numbers)
    assert total > 1
    return found


def set_numbers(layers: Layers, *, recomputed: int | None = None, kept: int | None = None) -> None:
    layers.recomputed = layers.recomputed if recomputed is None else recomputed
    layers.kept = layers.kept if kept is None else kept


@pytest.mark.parametrize(
    ("limit", "recomputed", "kept"),
    [
        (1000, 31, 0),
        (1009, 31, 0),
        (1010, 30, 0),
        (1155, 16, 0),
        (1309, 1, 0),
        # everything fits without recomputation; the evaluation's 1,200 bytes are no obstacle
        (1310, 0, 0),
        (1410, 0, 1),
        (9999, 0, 32),
    ],
)
def test_activations_come_first_and_weights_second(limit: int, recomputed: int, kept: int, layers: Layers) -> None:
    longest: Any = Pretended(layers, activations=10, weights=100, room=limit)
    text = fill_card(longest, layers, 1000, limit)
    assert (layers.recomputed, layers.kept) == (recomputed, kept)
    assert text.startswith("the longest takes ")
    assert len(longest.tried) <= 7  # a handful of attempts


def test_what_is_set_is_not_touched(layers: Layers) -> None:
    layers.automatic = (False, False)
    longest: Any = Pretended(layers, 10, 100, 10**6)
    fill_card(longest, layers, 1000, 10**6)
    assert (layers.recomputed, layers.kept) == (31, 0)
    assert layers.give_back() is None


def test_weights_whose_room_was_promised_to_somebody_else_are_dropped(layers: Layers) -> None:
    # the card takes less than was said to be free
    longest: Any = Pretended(layers, 10, 100, 1400)
    fill_card(longest, layers, 1000, 5000)
    assert (layers.recomputed, layers.kept) == (0, 0)


def test_memory_that_buys_speed_is_given_back_in_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama", torch.float32)
    total = len(decoder_layers(model))
    layers = Layers(model, 0, 3, total, (True, True))
    checkpoint_layers(model, 0)
    assert layers.give_back() == "the dequantized weights of 3 layers are dropped"
    assert layers.give_back() == f"{total - 1} of {total} layers are computed twice instead of 0"
    assert sum(layer.gradient_checkpointing for layer in decoder_layers(model)) == total - 1
    assert layers.give_back() is None


def test_the_limit_is_what_is_free_and_what_torch_holds_within_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 1 << 30
    for name, value in {
        "mem_get_info": lambda: (10 * gib, 40 * gib),
        "memory_reserved": lambda: 20 * gib,
        "get_per_process_memory_fraction": lambda: 1.0,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    # others hold 10 of 40 GiB; a twentieth of the card stays free
    assert memory.card_limit() == 28 * gib
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 0.5)
    assert memory.card_limit() == 19 * gib


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma", "gemma2"])
def test_no_pass_keeps_more_than_the_bound(kind: str) -> None:
    base = {"model_type": kind, **SIZES, "num_hidden_layers": 4}
    bound = memory.activations_at_most(bare(base, kind, "sdpa", torch.float32), sum(pair.packed for pair in PACK))
    if kind == "gemma2":
        # its scores grow with the square of the length
        assert bound == float("inf")
        return
    unfused = ("packing.fused_lora=false", "packing.fused_mlp=false", "packing.fused_norm=false")
    for settings in ((), unfused):
        player = Player(base, config("model.quantization=none", *settings), Played("cpu"), torch.float32)
        seen = total(player.step(PACK, recomputed=False, kept=False, several=True), player.stand_in)
        assert max(seen.peaks.values()) < bound
