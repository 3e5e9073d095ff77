"""The planner's estimate, for every preset on its base's shape, beside the memory that was really taken."""

from __future__ import annotations

import pytest
import torch
from gpu import needs
from gpu.planner import beside_plan
from gpu.results import Results

from qdpo.config.presets import names
from qdpo.config.resolve import resolve
from qdpo.hardware import find_device
from qdpo.planner.cards import card_of
from qdpo.planner.data import lengths_for
from qdpo.planner.estimate import estimate_for
from qdpo.planner.find import find_base
from qdpo.planner.settings import with_changes

pytestmark = needs.CUDA


@pytest.mark.parametrize("preset", names())
def test_estimate_is_within_a_tenth(preset: str, device: torch.device, results: Results) -> None:
    config, here = resolve(preset).config, find_device()
    assert here.capability is not None
    if here.capability < (8, 0):
        config = with_changes(config, "model", dtype="float16")
    base, lengths, card = find_base(config.model.name), lengths_for(config), card_of(here)
    if estimate_for(config, base, card, lengths).total > card.memory:
        pytest.skip(f"by its own estimate {preset} does not fit this card")
    found = beside_plan(config, base.config, lengths, here)
    results.add(f"plan of {preset}", found)
    for part in ("loaded", "step", "scoring", "peak"):
        assert abs(found[part]["error"]) < 0.1, part
