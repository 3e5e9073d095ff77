"""Loading quantizes tensor by tensor: the 16-bit model is never in memory, and the plan knows the peak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from qdpo.config.resolve import resolve
from qdpo.planner.cards import CARDS
from qdpo.planner.find import find_base
from qdpo.planner.parts import host_loading
from qdpo.planner.plays import plays_for

ROOT = Path(__file__).resolve().parents[2]
SHARDS = 4

LOAD = """
import json, re, sys, threading, time
import bitsandbytes, torch, transformers
from transformers import LlamaForCausalLM
from qdpo.config.schema import ModelSection
from qdpo.hardware import Device
from qdpo.model.load import load_base

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

before, peak, running = anonymous(), 0, True

def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
base = load_base(ModelSection(name=sys.argv[1], dtype="bfloat16"), Device("cpu", "CPU", None, 1))
running = False
thread.join()
print(json.dumps({"peak": peak - before, "layers": len(base.quantized), "all": anonymous() - before}))
"""


def sharded_base(folder: Path, layers: int) -> int:
    """A random Llama of 46 MB a layer in four bfloat16 shards; returns the bytes of its weights."""
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=4096,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        names = {n: p.shape for n, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    values = (torch.randn(4096 * 2048, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    index, total = {}, 0
    for number in range(SHARDS):
        shard = {
            n: values[: s.numel()].view(s).clone() for i, (n, s) in enumerate(names.items()) if i % SHARDS == number
        }
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, file)
        total += sum(tensor.nbytes for tensor in shard.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return total


def load_in_a_process(folder: Path) -> dict[str, int]:
    """Anonymous memory of a process that loads a base, above what its libraries take; mapped files do not count."""
    env = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)],
        capture_output=True,
        text=True,
        env={**env, "PYTHONPATH": str(ROOT)} if "PYTHONPATH" not in env else env,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(folder: Path, layers: int) -> None:
    stored = sharded_base(folder, layers)
    found = load_in_a_process(folder)
    assert found["layers"] == 7 * layers
    config = resolve("garrulus-a40", [f"model.name={folder}"]).config
    model = plays_for(find_base(str(folder)), config, CARDS["a40"]).model
    parts = host_loading(model.shape, model.static, "nf4", 2, cpu=True)
    planned = sum(parts.values())
    print(f"{stored / 1e6:.0f} MB stored, peak {found['peak'] / 1e6:.0f} MB, planned {planned / 1e6:.0f} MB")
    assert found["peak"] < 0.7 * stored
    assert found["peak"] == pytest.approx(planned, rel=0.25)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_loading_never_holds_the_16_bit_model(tmp_path: Path) -> None:
    check(tmp_path, layers=8)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_loading_a_base_of_1_4_gb(tmp_path: Path) -> None:
    check(tmp_path, layers=30)
