"""A run that is stopped in scarce memory goes on in it: its paged state stays paged, and it learns the same.

Four short runs on a small base with a large adapter (0.6 GB of optimizer state), about 12 seconds each by estimate.
"""

from __future__ import annotations

from pathlib import Path

import torch
from gpu import needs
from gpu.bases import MIDDLE, write_base, write_pairs
from gpu.caps import SPREAD
from gpu.results import Results
from gpu.resumed import cap_at, resumed_in_little_memory

pytestmark = needs.CUDA


def test_a_run_resumes_in_the_memory_that_it_was_stopped_in(
    tmp_path: Path, device: torch.device, results: Results
) -> None:
    half = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    base, data = tmp_path / "base", write_pairs(tmp_path, 96, 8, long_every=8)
    write_base(base, MIDDLE, device, half)
    settings = ("lora.r=512", "train.learning_rate=2e-4")
    found = resumed_in_little_memory(base, data, tmp_path, device, cap_at(device), 6, *settings)
    results.add("resume in little memory", found)
    unbroken, resumed, spared = found["unbroken"], found["resumed"], found["state_bytes"] / 4
    for run in (unbroken, found["again"], resumed):
        assert not run["halved"]
        assert run["paged"][0] == run["paged"][1] > 0
    assert len(resumed["losses"]) == 6
    assert resumed["resident_bytes"] < unbroken["resident_bytes"] + spared
    assert resumed["peak_bytes"] < unbroken["peak_bytes"] + spared
    # bitwise where two identical runs are
    for name in ("loss_difference", "adapter_difference"):
        assert resumed[name] <= SPREAD * found["again"][name], name
