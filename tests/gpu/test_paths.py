"""Small bases through whole runs: both half precisions, and memory that runs out for real."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpu import needs
from gpu.bases import MIDDLE, write_base, write_pairs
from gpu.ladder import cap_between, ladder
from gpu.needs import HALVES
from gpu.precision import walk
from gpu.results import Results
from gpu.runs import configured, run

pytestmark = needs.CUDA


@pytest.mark.parametrize("dtype", HALVES)
def test_training_in_half_precision(dtype: str, tmp_path: Path, device: torch.device, results: Results) -> None:
    needs.half(dtype)
    base, data = tmp_path / "base", write_pairs(tmp_path, 160, 16, long_every=8)
    write_base(base, MIDDLE, device, HALVES[dtype])
    settings = (f"model.dtype={dtype}", "train.learning_rate=2e-4")
    done = run(configured("garrulus-a40", base, data, 20, *settings), tmp_path / "run", device)
    short, seen = walk(base, data, tmp_path / "walk", device, dtype)
    results.add(f"training in {dtype}", {**done.as_dict(), "types_seen": seen})
    assert done.record["dtype"]["compute"] == short.record["dtype"]["compute"] == dtype
    assert done.loss_fell
    assert {tensor.dtype for tensor in done.adapter.values()} == {torch.float32}
    assert seen[dtype] > 0
    assert not (set(HALVES) - {dtype}) & set(seen)


def test_running_out_of_memory(tmp_path: Path, device: torch.device, results: Results) -> None:
    base, data = tmp_path / "base", write_pairs(tmp_path, 48, 16, long_every=2)
    write_base(base, MIDDLE, device, torch.float32)
    found = ladder(
        base, data, tmp_path, device, cap_between(device), (16384, 4096), 3, "packing.tokens_without_grad=4096"
    )
    results.add("out of memory", found)
    assert found["peak_bytes"]["large"] > 1.2 * found["peak_bytes"]["small"]
    assert found["halved"]
    assert all(step["to"] < step["from"] for step in found["halved"])
    assert found["peak_bytes"]["squeezed"] < found["peak_bytes"]["large"]
    assert found["difference"] < 1e-5
