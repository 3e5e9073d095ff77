"""The estimate in half precision, with fp32 adapters and a 4-bit base, as on a GPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from planner.grid import BATCHES, CPU, pairs_of
from training.tiny import Tiny
from transformers import LlamaConfig, LlamaForCausalLM

from qdpo.config.resolve import resolve
from qdpo.engine import attention
from qdpo.engine.engine import Engine
from qdpo.engine.fuse import fuse
from qdpo.engine.recompute import checkpoint_layers
from qdpo.hardware import Device
from qdpo.model.load import load_base
from qdpo.model.lora import attach, disable_dropout
from qdpo.planner.cards import this_machine
from qdpo.planner.estimate import trained_on
from qdpo.planner.find import loaded as found_base
from qdpo.planner.lengths import PackShape, lengths_of
from qdpo.planner.meter import peak_bytes
from qdpo.planner.plays import plays_for
from qdpo.planner.settings import with_changes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama on disk, large enough that activations outweigh everything else."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=2000,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("checkpointed", [None, 0])
def test_half_precision_on_a_4_bit_base(base: str, tiny: Tiny, dtype: str, checkpointed: int | None) -> None:
    config = resolve(str(tiny.preset), [f"model.name={base}", f"model.dtype={dtype}", "lora.r=64"]).config
    loaded = load_base(config.model, Device("cpu", "CPU", None, 1))
    policy = attach(loaded.model, config.lora, 0).train()
    disable_dropout(policy)
    model, half = policy.get_base_model(), getattr(torch, dtype)
    attention.install(model)
    fusion = fuse(model)
    # what the engine leaves alone in this type, it leaves alone in a run too
    config = with_changes(config, "packing", fused_mlp=not fusion.left["mlp"], fused_norm=not fusion.left["norm"])
    checkpoint_layers(model, checkpointed)
    config = with_changes(config, "packing", checkpoint_layers="auto" if checkpointed is None else checkpointed)
    engine = Engine(model, CPU, partial(torch.autocast, "cpu", half))
    pairs = pairs_of(BATCHES[2])

    def step() -> None:
        engine.score(pairs, range(len(pairs))).logps.sum().backward()
        policy.zero_grad(set_to_none=True)

    step()
    measured = peak_bytes(step, CPU)
    pack = PackShape(tuple(lengths_of(pairs)))
    plays = plays_for(found_base(base, model), with_changes(config, "model", dtype=dtype), this_machine())
    estimated = max(trained_on(plays, config, pack, several=False).peaks.values())
    print(f"{fusion.describe()}: measured {measured:,}, estimated {estimated:,.0f}, {estimated / measured - 1:+.1%}")
    assert estimated == pytest.approx(measured, rel=0.03)
