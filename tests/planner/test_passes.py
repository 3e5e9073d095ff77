"""What is taken in a pass is returned: nothing leaks from the ledger, whatever the settings."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from qdpo.config.resolve import resolve
from qdpo.config.schema import PROJECTIONS
from qdpo.planner.ledger import Ledger
from qdpo.planner.lengths import PackShape, PairLengths
from qdpo.planner.passes import Pass
from qdpo.planner.settings import Settings, with_changes
from qdpo.planner.shapes import GEMMA_7B, MISTRAL_7B, Shape

GEMMA2 = replace(GEMMA_7B, kind="gemma2", sandwich=True, score_cap=True, logit_cap=True, window=64, full_every=2)
QWEN3 = replace(MISTRAL_7B, kind="qwen3", qk_norm=True, window=None)
PACKS = (
    PackShape((PairLengths(30, 8, 5),) * 9),
    PackShape((PairLengths(500, 200, 100, 7), PairLengths(100, 50, 1))),
    PackShape((PairLengths(300, 4, 4, 4),)),
)
FUSED = Settings(resolve("garrulus-a40", ["lora.r=16", "packing.checkpoint_layers=3"]).config, 2, [], [], several=False)


def changed(settings: Settings, **packing: object) -> Settings:
    return replace(settings, config=with_changes(settings.config, "packing", **packing))


@pytest.mark.parametrize("shape", [MISTRAL_7B, GEMMA_7B, GEMMA2, QWEN3], ids=lambda shape: shape.kind)
@pytest.mark.parametrize("pack", PACKS, ids=("short", "long", "same"))
def test_everything_is_returned(shape: Shape, pack: PackShape) -> None:
    for lora, mlp, norm, skip in itertools.product((True, False), repeat=4):
        settings = changed(FUSED, fused_lora=lora, fused_mlp=mlp, fused_norm=norm, skip_unscored=skip)
        for b, layers, held in itertools.product((2, 4), (0, 3, shape.layers), (True, False)):
            ledger = Ledger()
            case = replace(changed(settings, checkpoint_layers=layers), b=b, several=held)
            Pass(shape, pack, case, ledger).train()
            left = 0 if held else 4 * shape.lora(16, list(PROJECTIONS))
            assert ledger.level == pytest.approx(left, abs=1.0)
            for adapters in (True, False):
                ledger = Ledger()
                Pass(shape, pack, case, ledger).score(adapters)
                assert ledger.level == pytest.approx(0, abs=1.0)


def peak(b: int = 2, **packing: object) -> float:
    ledger = Ledger()
    Pass(MISTRAL_7B, PACKS[1], replace(changed(FUSED, **packing), b=b), ledger).train()
    return max(ledger.peaks.values())


def test_each_saving_saves() -> None:
    plain = peak(checkpoint_layers=0)
    assert peak(checkpoint_layers=16) < plain
    assert peak(checkpoint_layers=31) < peak(checkpoint_layers=16)
    assert peak(checkpoint_layers=0, b=4) > plain
    for name in ("fused_lora", "fused_mlp", "fused_norm"):
        assert peak(checkpoint_layers=0, **{name: False}) > plain
