"""Loading at a 7B's width holds the NF4 base and one tensor beside it, never the 16-bit files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, MistralConfig

ROOT = Path(__file__).resolve().parents[2]
LONG_AGO = 1_600_000_000 * 10**9
WIDTH, INNER = 4096, 14336
LARGEST = WIDTH * INNER * 2
"""Bytes of the largest tensor of a layer, in bfloat16."""

LOAD = """
import json, re, sys
import bitsandbytes, peft, torch, transformers.models.mistral.modeling_mistral
from qdpo.config.schema import ModelSection
from qdpo.hardware import Device
from qdpo.model.load import load_base

def field(table, name):
    return int(re.search(name + r":\\s+(\\d+)", open(f"/proc/self/{table}").read())[1])

open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before, read = field("status", "VmRSS") * 1024, field("io", "rchar")
base = load_base(ModelSection(name=sys.argv[1], dtype="bfloat16", nf4_cache=sys.argv[2]), Device("cpu", "CPU", None, 1))
print(json.dumps({
    "peak": field("status", "VmHWM") * 1024 - before,
    "end": field("status", "VmRSS") * 1024 - before,
    "read": field("io", "rchar") - read,
    "layers": len(base.quantized),
}))
"""


def wide_base(folder: Path, layers: int) -> int:
    """A Mistral of 7B's width with few layers and words, one file a layer; returns its bytes."""
    config = MistralConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        vocab_size=1000,
        sliding_window=None,
        architectures=["MistralForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: one.shape for name, one in AutoModelForCausalLM.from_config(config).named_parameters()}
    values = (torch.randn(WIDTH * INNER, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    parts: dict[str, dict[str, torch.Size]] = {}
    for name, shape in shapes.items():
        layer = name.split(".")[2] if ".layers." in name else "rest"
        parts.setdefault(f"model-{layer}.safetensors", {})[name] = shape
    index, total = {}, 0
    for file, part in parts.items():
        tensors = {name: values[: shape.numel()].view(shape).clone() for name, shape in part.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        os.utime(folder / file, ns=(LONG_AGO, LONG_AGO))
        index |= dict.fromkeys(part, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return total


def load(folder: Path, setting: str) -> dict[str, int]:
    """What a process of its own takes to load a base, in bytes."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "QDPO_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOAD, str(folder), setting]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(folder: Path, layers: int) -> dict[str, dict[str, int]]:
    """Load in all ways, and hold each to its bounds."""
    stored = wide_base(folder, layers)
    packed = stored * 0.27  # half a byte for two, the scales, and what stays in 16 bits
    ways = {name: load(folder, "off" if name == "off" else "on") for name in ("off", "made", "kept")}
    for name, found in ways.items():
        print(f"{layers} layers, {name}: " + ", ".join(f"{key} {value / 1e6:.0f} MB" for key, value in found.items()))
        assert found["layers"] == 7 * layers
        # beside the base there is one tensor, and the pieces of its rounding
        assert found["peak"] < packed + LARGEST + 60e6
    assert ways["off"]["read"] < 1.05 * stored
    assert ways["kept"]["read"] < 2 * packed + 40e6  # its hash is computed once where it was written just now
    return ways


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")
def test_one_layer(tmp_path: Path) -> None:
    check(tmp_path, 1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")
def test_memory_grows_by_the_rounded_layers_alone(tmp_path: Path) -> None:
    layers = (2, 4, 8)
    found = []
    for count in layers:
        (tmp_path / str(count)).mkdir()
        found.append(check(tmp_path / str(count), count))
    weights = 2 * WIDTH * WIDTH + 2 * WIDTH * 1024 + 3 * WIDTH * INNER
    for way in ("off", "made", "kept"):
        slope, start = np.polyfit(layers, [ways[way]["peak"] for ways in found], 1)
        told = f"{start / 1e6:.0f} MB and {slope / 1e6:.0f} MB a layer"
        print(f"{way}: {told}; 32 layers {(start + 32 * slope) / 1e9:.2f} GB")
        assert slope < 1.05 * 0.516 * weights
        assert start < LARGEST + 100e6
