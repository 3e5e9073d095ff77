"""Disk and memory are checked by the headers of a base of the real size, before any of its weights is read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qdpo.config.schema import LoraSection
from qdpo.model.source import ASSETS
from qdpo.training.stages.disk import adapter_weights, base_bytes

LAYERS, HIDDEN, INNER, HEADS, VOCABULARY = 32, 4096, 14336, 1024, 32000
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HEADS, HIDDEN),
    "self_attn.v_proj": (HEADS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
    "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,),
}


def all_shapes() -> dict[str, tuple[int, ...]]:
    """A Mistral-7B's tensors."""
    layers = {f"model.layers.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in SHAPES.items()}
    ends = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN)}
    return layers | ends | {"model.norm.weight": (HIDDEN,)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of 14.5 GB whose one file is a hole behind a true header."""
    folder = tmp_path_factory.mktemp("base")
    header, end = {}, 0
    for name, shape in all_shapes().items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    assert end > 14e9
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": VOCABULARY,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ASSETS / "base" / name, folder)
    return folder


SCRIPT = """
import re, shutil, sys
from types import SimpleNamespace
from qdpo import hardware
from qdpo.cli.main import main
from qdpo.training import run
free = {free}
if free:
    shutil.disk_usage = lambda path: SimpleNamespace(free=free)
if {memory}:
    hardware.available_memory = lambda: {memory}
    import qdpo.training.stages.disk as disk
    disk.available_memory, disk.free_swap = hardware.available_memory, lambda: 0
if {unchecked}:
    run.check_by_headers = lambda *given: None
def load_policy(*given):
    sys.exit(3)  # what follows reads the weights
run.load_policy = load_policy
code = main(sys.argv[1:])
print(re.search("rchar: ([0-9]+)", open("/proc/self/io").read())[1])
sys.exit(code)
"""


def trained(base: Path, folder: Path, **fakes: int | bool) -> tuple[int, str, int]:
    """Exit code, stderr and bytes read of a command that trains where disk or memory are small."""
    known = {"free": 0, "memory": 0, "unchecked": False} | fakes
    script = SCRIPT
    for name, value in known.items():
        script = script.replace(f"{{{name}}}", str(value))
    command = [sys.executable, "-c", script, "train", "--preset", "quickstart", "--model", str(base)]
    command += ["--run-dir", str(folder / "run"), "--set", "samples.count=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr, int(done.stdout.split()[-1]) if done.stdout.strip() else 0


def test_a_full_disk_is_refused_before_a_weight_is_read(base: Path, tmp_path: Path) -> None:
    code, said, read = trained(base, tmp_path, free=2 << 30)
    assert code == 74, said
    assert "train.room_for_export=false" in said
    assert read < 200 << 20  # modules, tokenizer and pairs; the base has 14.5 GB
    # the check is what refuses
    assert trained(base, tmp_path / "other", free=2 << 30, unchecked=True)[0] == 3


def test_too_little_memory_is_refused_before_a_weight_is_read(base: Path, tmp_path: Path) -> None:
    code, said, read = trained(base, tmp_path, free=1 << 50, memory=3 << 30)
    assert code == 71, said
    assert "at least 3.74 GiB in memory, 3.00 GiB are free" in said
    assert read < 200 << 20
    assert trained(base, tmp_path / "other", free=1 << 50, memory=16 << 30)[0] == 3


def test_headers_are_read_within_a_second(base: Path) -> None:
    from qdpo.model.tensors import TensorFiles

    began = time.monotonic()
    shapes = {name: place.shape for name, place in TensorFiles.of_folder(base).places.items()}
    assert time.monotonic() - began < 1
    assert sum(adapter_weights(LoraSection(r=16), shapes)) == 41_943_040  # as PEFT counts for a Mistral-7B
    assert base_bytes(shapes, nf4=True) == pytest.approx(3.74 * 2**30, rel=0.01)
    assert base_bytes(shapes, nf4=False) == pytest.approx(14.48e9, rel=0.01)
