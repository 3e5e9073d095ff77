"""The written answers of an evaluation, on Mistral-7B's shape, beside the planner's estimate.

About 40 seconds by estimate: a model is made on the card, and 8 prompts of 1,024 tokens are answered by 64 tokens each,
five times.
"""

from __future__ import annotations

import torch
from gpu import needs
from gpu.answers import beside_estimate
from gpu.results import Results

from qdpo.config.resolve import resolve
from qdpo.hardware import find_device
from qdpo.planner.shapes import MISTRAL_7B

pytestmark = needs.CUDA


@needs.gib(15)
def test_answers_take_what_is_estimated(device: torch.device, results: Results) -> None:
    compute = "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    config = resolve("garrulus-a40", [f"model.dtype={compute}", "samples.count=8"]).config
    found = beside_estimate(config, MISTRAL_7B, find_device())
    results.add("answers", found)
    assert found["answer_tokens"] == [config.samples.max_new_tokens] * config.samples.count
    assert found["at_once"] == config.samples.count
    for name in ("first_seconds", "seconds"):
        assert 0.5 < found[name] / found[f"{name}_estimated"] < 2, name
    assert abs(found["peak_bytes"] / found["peak_bytes_estimated"] - 1) < 0.15
