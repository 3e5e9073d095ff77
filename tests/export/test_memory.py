"""A base that is larger than the memory is merged and converted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from export import toys
from safetensors.torch import save_file

from qdpo.model.tensors import PlannedTensor, write_folder

GIB = 1 << 30
LIMIT = 3 * GIB // 2


def large_run(folder: Path, layers: int, vocabulary: int = toys.VOCABULARY) -> Path:
    """A Llama with the layer sizes of a 7B model, 416 MiB of bfloat16 a layer, and an adapter for it."""
    config = toys.llama(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    base, run = folder / "base", folder / "run"
    base.mkdir()
    config.save_pretrained(base)
    shapes = {"q_proj": (4096, 4096), "k_proj": (1024, 4096), "v_proj": (1024, 4096), "o_proj": (4096, 4096)}
    shapes = {f"self_attn.{name}": shape for name, shape in shapes.items()}
    shapes |= {f"mlp.{name}": (14336, 4096) for name in ("gate_proj", "up_proj")} | {"mlp.down_proj": (4096, 14336)}
    modules = {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in shapes.items()}
    plan = [PlannedTensor(f"{name}.weight", torch.bfloat16, shape) for name, shape in modules.items()]
    for i in range(layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            plan.append(PlannedTensor(f"model.layers.{i}.{norm}.weight", torch.bfloat16, (4096,)))
    plan.append(PlannedTensor("model.norm.weight", torch.bfloat16, (4096,)))
    for name in ("model.embed_tokens", "lm_head"):
        plan.append(PlannedTensor(f"{name}.weight", torch.bfloat16, (vocabulary, 4096)))
    values = (torch.randn(max(14336, vocabulary) * 4096, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    by_name = {tensor.name: tensor for tensor in plan}

    def read(name: str) -> torch.Tensor:
        shape = by_name[name].shape
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        return values[: int(torch.Size(shape).numel())].view(shape)

    write_folder(base, plan, read)
    adapter = run / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 16, "lora_alpha": 16, "target_modules": toys.PROJECTIONS})
    )
    parts = {}
    for name, (rows, columns) in modules.items():
        parts[f"base_model.model.{name}.lora_A.weight"] = torch.randn(16, columns) * 0.02
        parts[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, 16) * 0.02
    save_file(parts, adapter / "adapter_model.safetensors")
    toys.byte_tokenizer().save_pretrained(adapter)
    toys.write_record(run, base, list(modules), torch.bfloat16)
    return run


def export_with_little_memory(run: Path, *options: str) -> tuple[int, float]:
    """Export in a process that may allocate 1.5 GiB; the peak of its resident memory in bytes, and its seconds."""
    script = textwrap.dedent("""
        import resource, sys
        from qdpo.hardware import resident_peak
        resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]),) * 2)
        from qdpo.cli.main import main
        code = main(["merge-export", "--no-verify", "--run", *sys.argv[2:]])
        print("peak", resident_peak())
        sys.exit(code)
    """)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script, str(LIMIT), str(run), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "MALLOC_ARENA_MAX": "2"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stderr, done.stdout)
    return int(done.stdout.split("peak ")[1]), time.monotonic() - began


@pytest.mark.slow
def test_a_4_gib_base_merges_in_1_5_gib(tmp_path: Path) -> None:
    run = large_run(tmp_path, layers=10)
    size = sum(path.stat().st_size for path in (tmp_path / "base").glob("*.safetensors"))
    assert size > 4 * GIB
    peak, seconds = export_with_little_memory(run, "--format", "safetensors")
    print(f"{size:,} bytes merged in {seconds:.0f} s, peak {peak / GIB:.2f} GiB")
    assert peak < LIMIT


@pytest.mark.slow
def test_a_4_gib_base_becomes_q4_k_m_in_1_5_gib(tmp_path: Path) -> None:
    run = large_run(tmp_path, layers=10)
    peak, seconds = export_with_little_memory(run, "--format", "gguf", "--quant", "q4_k_m")
    print(f"2.2 G weights in {seconds:.0f} s, peak {peak / GIB:.2f} GiB")
    assert peak < LIMIT


def test_a_base_of_one_layer_merges_in_1_5_gib(tmp_path: Path) -> None:
    run = large_run(tmp_path, layers=1)
    peak, _ = export_with_little_memory(run, "--format", "safetensors")
    assert peak < LIMIT
