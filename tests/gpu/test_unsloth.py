"""`backend: unsloth` on the hardware that it is made for, where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from gpu import needs
from gpu.bases import MIDDLE, write_base, write_pairs
from gpu.results import Results
from gpu.runs import configured, run_outside

pytestmark = [
    needs.CUDA,
    pytest.mark.skipif(importlib.util.find_spec("unsloth") is None, reason="needs unsloth (docs/backends.md)"),
]


@pytest.mark.parametrize("engine", ["packed", "trl"])
def test_trains_as_without_unsloth(engine: str, tmp_path: Path, device: torch.device, results: Results) -> None:
    base, data = tmp_path / "base", write_pairs(tmp_path, 160, 16, long_every=8)
    write_base(base, MIDDLE, device, torch.bfloat16)
    runs = {}
    for backend in ("hf", "unsloth"):
        settings = (f"backend={backend}", f"engine={engine}", "train.learning_rate=2e-4")
        resolved = configured("garrulus-a40", base, data, 10, *settings)
        runs[backend] = run_outside(resolved, tmp_path / backend)
    results.add(f"unsloth, engine {engine}", {name: done.as_dict() for name, done in runs.items()})
    assert runs["unsloth"].record["backend"]["name"] == "unsloth"
    assert runs["unsloth"].loss_fell
    # half precision, and other kernels: the same way down, not the same bits
    assert runs["unsloth"].losses == pytest.approx(runs["hf"].losses, abs=0.05)
