"""Garrulus on Mistral-7B's shape in the memory of smaller cards: what is free there becomes speed, and nothing else.

Four runs of six steps, about 30 seconds each by estimate, most of which is loading the base.
"""

from __future__ import annotations

from pathlib import Path

import torch
from gpu import needs
from gpu.bases import write_pairs
from gpu.caps import SPREAD, auto_under_caps
from gpu.results import Results

from qdpo.hardware import GIB
from qdpo.planner.shapes import MISTRAL_7B

pytestmark = needs.CUDA

LAYERS = MISTRAL_7B["num_hidden_layers"]

SIZES = (15, 24)
"""GiB of a T4, an RTX 3090 or 4090."""

SLOWER = 1.05
"""How much longer the clock may say that a step takes which computes no more than another."""


@needs.gib(min(SIZES))
def test_auto_takes_what_is_free_and_changes_nothing(
    mistral_7b: Path, tmp_path: Path, device: torch.device, results: Results
) -> None:
    total = torch.cuda.mem_get_info(device)[1]
    sizes = [size for size in SIZES if size == min(SIZES) or (size - 0.6) * GIB <= total]
    data = write_pairs(tmp_path, 96, 16, long_every=4)
    # as garrulus-t4 has it: what no gradient is taken of leaves no more than training does
    wide = "packing.tokens_without_grad=8192"
    found = auto_under_caps(mistral_7b, data, tmp_path, device, sizes, 6, wide)
    results.add("auto under a cap", found)
    least = found["least"]
    assert least["recomputed_layers"] == LAYERS
    for size in sizes:
        auto = found[f"auto in {size:g} GiB"]
        assert auto["peak_bytes"] <= auto["reserved_bytes"] <= auto["limit_bytes"]
        assert not auto["halved"]
        assert auto["recomputed_layers"] < LAYERS
        assert auto["seconds_of_steps"] <= SLOWER * least["seconds_of_steps"]
        # bitwise where two identical runs are
        for name in ("loss_difference", "adapter_difference"):
            assert auto[name] <= SPREAD * found["again"][name], name
    if len(sizes) > 1:
        smaller, larger = (found[f"auto in {size:g} GiB"]["recomputed_layers"] for size in sizes)
        # all but the last is what `auto` begins with
        assert larger < LAYERS - 1
        assert larger <= smaller
