"""Which share of the card's matrix products `qdpo train` itself reaches on Mistral-7B's shape.

Two runs of ten steps, about 30 seconds each by estimate, most of which is loading the base.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpu import needs
from gpu.bases import write_pairs
from gpu.results import Results
from gpu.runs import configured, run
from gpu.speed import matmul_rate
from gpu.timed import utilization

from qdpo.planner.shapes import MISTRAL_7B

pytestmark = needs.CUDA

WORKLOADS = {"sentences": (1000, 0.0), "a quarter of the longest": (4, 0.25)}
"""Of how many pairs one is as long as the preset allows, and the share that is expected at the least: a step of
Garrulus' own sentences has a few hundred tokens, and there the weights' dequantization and the launches decide."""


@needs.gib(24)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_share_of_the_cards_matrix_products(
    workload: str, mistral_7b: Path, tmp_path: Path, device: torch.device, results: Results
) -> None:
    long_every, share = WORKLOADS[workload]
    half = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    rate = matmul_rate(device, half, 8192)
    resolved = configured("garrulus-a40", mistral_7b, write_pairs(tmp_path, 160, 16, long_every), 10)
    done = run(resolved, tmp_path / "run", device)
    found = utilization(done, resolved.config, MISTRAL_7B, rate)
    results.add(f"utilization, {workload}", {**done.as_dict(), **found})
    # the steps are those that were run
    assert found["tokens_of_all_steps"] == done.record["result"]["tokens"]
    assert share < found["mfu"] <= found["hfu"] < 1
