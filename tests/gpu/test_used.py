"""Every adapted layer of a run goes through its fused function, in the compute type.

Two runs, about 12 seconds each by estimate.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpu import needs
from gpu.bases import MIDDLE, write_base, write_pairs
from gpu.needs import HALVES
from gpu.results import Results
from gpu.runs import configured, run
from gpu.used import counted_passes, faults_in

pytestmark = needs.CUDA


@pytest.mark.parametrize("dtype", HALVES)
def test_fused_calls_are_those_of_layers_and_passes(
    dtype: str, tmp_path: Path, device: torch.device, results: Results
) -> None:
    needs.half(dtype)
    base, data = tmp_path / "base", write_pairs(tmp_path, 48, 16, long_every=2)
    write_base(base, MIDDLE, device, HALVES[dtype])
    # some layers are computed twice, and some have their weights kept
    settings = (f"model.dtype={dtype}", "packing.checkpoint_layers=3", "packing.keep_dequantized=2")
    with counted_passes() as passes:
        done = run(configured("garrulus-a40", base, data, 3, *settings), tmp_path / "run", device)
    results.add(f"fused calls in {dtype}", {"passes": passes, "engine": done.record["engine"]})
    assert len(passes) == 3
    assert min(passes) > 1
    assert done.record["dtype"]["compute"] == dtype
    assert faults_in(done.record, MIDDLE, passes[0]) == []
