"""A short model says what a deep one asks for, to a few thousandths, in every form in which layers are run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from qdpo.config.resolve import resolve
from qdpo.config.schema import RunConfig
from qdpo.engine.device import Played
from qdpo.planner import play
from qdpo.planner.lengths import PairLengths
from qdpo.planner.play import Player
from qdpo.planner.spans import Span, deeper, plus, total

A40 = Played("cuda", (8, 6))
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 2000,
}
LLAMA = {"model_type": "llama", **SIZES, "num_hidden_layers": 6}
GEMMA2 = {"model_type": "gemma2", **SIZES, "num_hidden_layers": 7, "sliding_window": 64}
PACK = [PairLengths(60, 30, 20, 4), PairLengths(25, 12, 9)]


def config(*settings: str) -> RunConfig:
    return resolve("garrulus-a40", list(settings)).config


def player(base: dict[str, Any], short: bool, monkeypatch: pytest.MonkeyPatch, *settings: str) -> Player:
    """With few layers, or with all of them."""
    if not short:
        monkeypatch.setattr(play, "shorten", lambda model: list(range(base["num_hidden_layers"])))
    made = Player(base, config(*settings), A40, torch.bfloat16)
    monkeypatch.undo()
    return made


def both(base: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *settings: str) -> tuple[Player, Player]:
    return player(base, True, monkeypatch, *settings), player(base, False, monkeypatch, *settings)


def same(short: Player, spans: Sequence[Span], deep: Sequence[Span]) -> None:
    wanted, found = total(deep, list(range(len(short.stand_in)))), total(spans, short.stand_in)
    # tensors of a few bytes (512 each, rounded) are freed a moment earlier or later
    assert found.peaks == pytest.approx(wanted.peaks, rel=3e-3, abs=32768)
    assert sum(found.level.values()) == pytest.approx(sum(wanted.level.values()), abs=16384)
    assert found.flops == pytest.approx(wanted.flops)
    # the adapter of all layers is cast outside of the layers
    assert found.moved == pytest.approx(wanted.moved, rel=0.05)


@pytest.mark.parametrize("base", [LLAMA, GEMMA2], ids=["llama", "gemma2"])
def test_every_pass_of_a_deep_model_is_that_of_a_short_one(base: dict[str, Any], monkeypatch: Any) -> None:
    short, deep = both(base, monkeypatch)
    assert len(short.static) - 1 < base["num_hidden_layers"]
    assert short.shape == deep.shape
    for form in (
        {"recomputed": None, "kept": False, "several": True},
        {"recomputed": True, "kept": False, "several": False},
        {"recomputed": False, "kept": False, "several": False},
        {"recomputed": False, "kept": True, "several": True},
    ):
        same(short, short.step(PACK, **form), deep.step(PACK, **form))
    for adapters in (False, True):
        same(short, short.score(PACK, adapters), deep.score(PACK, adapters))
    # what these leave behind is dropped outside of the layers, so that only their peaks are a deep model's
    for few, all_ in ((short.answers(3, 40), deep.answers(3, 40)), (short.check(), deep.check())):
        wanted = total(all_, list(range(len(short.stand_in)))).peaks
        assert total(few, short.stand_in).peaks == pytest.approx(wanted, rel=3e-3, abs=32768)
    whole = {}
    for number in short.stand_in:
        whole = plus(whole, short.static[number])
    real = {}
    for layer in deep.static[:-1]:
        real = plus(real, layer)
    assert whole == real


def test_layers_in_different_forms_are_taken_from_plays_in_these_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    short, deep = both(LLAMA, monkeypatch)
    forms = [short.step(PACK, recomputed=None, kept=False, several=True)]
    forms.append(short.step(PACK, recomputed=False, kept=False, several=True))
    found = total(forms[0], short.stand_in, lambda layer: forms[0] if layer < 2 else forms[1])
    real = play.checkpoint_layers
    monkeypatch.setattr(play, "checkpoint_layers", lambda model, count: real(model, 2))
    wanted = total(deep.step(PACK, recomputed=None, kept=False, several=True), list(range(6)))
    assert found.peaks == pytest.approx(wanted.peaks, rel=5e-3)
    # and it is another number than that of either form
    for form in forms:
        assert total(form, short.stand_in).peaks != pytest.approx(wanted.peaks, rel=5e-3)


def span(layer: int, left: int, peak: int) -> Span:
    return Span("pass", layer, {"a": left}, {"a": peak}, 1.0, 2.0)


def test_a_sweep_downwards_is_repeated_in_its_own_order() -> None:
    up = [span(-1, 1, 5), span(0, 2, 3), span(1, 10, 20), span(2, 4, 4)]
    down = [span(2, -4, 0), span(1, -10, 7), span(0, -2, 9)]
    layers = [found.layer for found in deeper(up + down, [0, 1, 1, 1, 2])]
    assert layers == [-1, 0, 1, 1, 1, 2, 2, 1, 1, 1, 0]
    found = total(up + down, [0, 1, 1, 1, 2])
    assert found.level == {"a": 1}
    assert found.peaks == {"pass": 1 + 2 + 20 + 20}  # at the third layer of the middle kind
    assert found.flops == {"pass": 11.0}


def test_a_pass_that_leaves_layers_out_cannot_be_taken_apart() -> None:
    with pytest.raises(ValueError, match="not all 3 of them"):
        total([span(0, 1, 1), span(2, 1, 1), span(1, 1, 1)], [0, 1, 2])
