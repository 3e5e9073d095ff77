"""The benchmark of the engine on a GPU, in tokens a second and as a share of what the card's matrix products reach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from gpu.bases import Settings, sizes_of

from benchmarks import engine, measure

VARIANTS = "TRL;TRL cached;packed;packed cached;packed cached, no checkpointing"


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int, rounds: int = 10) -> float:
    """Operations a second of large matrix products: the best of some rounds of ten.

    Args:
        device: where.
        dtype: of the matrices.
        size: rows and columns.
        rounds: how often.
    """
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def ten() -> None:
        for _ in range(10):
            left @ right

    ten()
    best = min(measure.timed(ten, device).wall for _ in range(rounds))
    return 10 * 2 * size**3 / best


def benchmark(out: Path, base: Settings, device: torch.device, rate: float, *options: str) -> dict[str, Any]:
    """Run `python -m benchmarks.engine` and add to each variant its tokens a second and its share of `rate`.

    Args:
        out: where the benchmark writes.
        base: configuration of its base.
        device: where it runs.
        rate: operations a second of the card, from `matmul_rate`.
        options: further options of the benchmark.
    """
    engine.main(["--device", device.type, "--nf4", "--memory", "--out", str(out), "--variants", VARIANTS, *options])
    record: dict[str, Any] = json.loads(out.read_text())
    record["matmul_flops"] = rate
    linear = sizes_of(base).linear
    for result in record["workloads"].values():
        tokens = result["tokens"]
        for name, variant in result["variants"].items():
            # the floor: forward, and the gradient of the activations, each token of a shared prompt once
            useful = 2 * 2 * linear * tokens["packed"]
            seconds = variant["wall"]["seconds"]
            variant["real_tokens_per_second"] = tokens["real"] / seconds
            variant["share_of_matmul_rate"] = useful / seconds / rate
            variant["is_stock"] = name.startswith("TRL")
    return record
