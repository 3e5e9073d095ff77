"""The packed engine gives stock TRL's loss and gradient, TRL's head being its own Triton kernel."""

from __future__ import annotations

import pytest
import torch
from gpu import needs
from gpu.bases import MIDDLE
from gpu.equality import beside_trl
from gpu.results import Results

from benchmarks import workloads

pytestmark = needs.CUDA


@pytest.mark.parametrize("name", ["W1", "W3", "W4"])
def test_in_float32(name: str, device: torch.device, results: Results) -> None:
    found = beside_trl(MIDDLE, device, None, workloads.synthetic(name, 8), 4096)
    results.add(f"equal to TRL, {name}, float32", found)
    assert found["head"].startswith("trl."), "TRL's own head was to be compared with"
    assert found["loss_difference"] < 1e-5
    assert found["gradient_difference"] < 1e-4


@pytest.mark.parametrize("name", ["W1", "W3", "W4"])
def test_in_half_precision_on_nf4(name: str, device: torch.device, results: Results) -> None:
    """Rounding decides here: the engine may differ from TRL as TRL does from itself under another padding."""
    half = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    found = beside_trl(MIDDLE, device, half, workloads.synthetic(name, 8), 4096)
    results.add(f"equal to TRL, {name}, NF4, {half}", found)
    assert found["head"].startswith("trl."), "TRL's own head was to be compared with"
    assert found["loss_difference"] < max(2e-2, 3 * found["padding_loss_difference"])
    assert found["gradient_difference"] < max(2e-2, 3 * found["padding_gradient_difference"])
