"""How fast a step is on Mistral-7B's shape in NF4, beside stock TRL, and beside the card's own matrix products."""

from __future__ import annotations

from pathlib import Path

import torch
from gpu import needs
from gpu.results import Results
from gpu.speed import benchmark, matmul_rate

from qdpo.planner.shapes import MISTRAL_7B

pytestmark = needs.CUDA

LARGE = ("--workloads", "W1,W3,W4", "--rounds", "2", "--budget", "8192")
SMALL = ("--workloads", "W3", "--rounds", "1", "--budget", "2048")


@needs.gib(15)
def test_step_beside_trl(tmp_path: Path, device: torch.device, results: Results) -> None:
    half = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    rate = matmul_rate(device, half, 8192)
    options = LARGE if needs.is_large() else SMALL
    found = benchmark(tmp_path / "engine.json", MISTRAL_7B, device, rate, "--base", "mistral-7b-random", *options)
    results.add("speed", found)
    for result in found["workloads"].values():
        for variant in result["variants"].values():
            assert variant["gradient_difference"] < 0.1
        assert result["variants"]["packed"]["against"]["TRL"]["wall"]["ratio"] > 1
