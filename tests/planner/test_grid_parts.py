"""What the plan adds for `train.grid` is what the layers then hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from planner.grid import BATCHES, Case, config_of, plays_of, policy_of

from qdpo.config.schema import TrainSection
from qdpo.engine.on_grid import on_grid_of, put_on_grid
from qdpo.export.gguf.trained_grids import fit_grids
from qdpo.model.grid_file import Grids, save_grids
from qdpo.planner import parts


def test_the_plan_counts_what_is_held_on_a_grid(tmp_path: Path) -> None:
    policy: Any = policy_of("llama", 8)
    shape = plays_of(policy, Case("llama", 8, BATCHES[0], None)).model.shape
    model = policy.get_base_model()
    config = {**model.config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    save_grids(tmp_path / "grids", "q4_0", fit_grids(model, config, "q4_0"))
    put_on_grid(policy, Grids(tmp_path / "grids"))
    with torch.no_grad():
        policy(torch.arange(8).view(1, -1))
    held = 0
    for module in model.modules():
        if (layer := on_grid_of(module)) is not None:
            held += sum(part.nbytes for part in layer._stored.values())
            assert layer._last is not None
            held += layer._last[2].nbytes
    none = config_of(8, None)
    run = none.model_copy(update={"train": TrainSection(grid="q4_0")})
    assert parts.grid_bytes(shape, run, 4, cpu=True) * 0.97 <= held <= parts.grid_bytes(shape, run, 4, cpu=True)
    assert parts.grid_bytes(shape, none, 4, cpu=True) == 0
