"""A 7B is verified in 3 GiB: the peak does not grow with its layers, and is known before.

Layers, vocabulary and adapter are as wide as a 7B's (hidden 4096, inner 14336, 32,000 tokens); their number is not. The
limit is RLIMIT_DATA, which counts private writable memory whether it is touched or not, and leaves out mapped files:
pages of those go when others need them. The peak is the process' anonymous memory.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from export import toys
from export.test_memory import GIB, large_run

from qdpo.model.stream_memory import Sizes, verification_memory
from qdpo.model.tensors import TensorFiles

LIMIT = 3 * GIB

SCRIPT = textwrap.dedent("""
    import resource, sys
    resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]),) * 2)
    from qdpo.cli.main import main
    sys.exit(main(sys.argv[2:]))
""")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bases of this size are kept under the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def wide_run(folder: Path, layers: int, vocabulary: int) -> Path:
    """A run on a base with the layers of a 7B, with held-out pairs."""
    run = large_run(folder, layers, vocabulary)
    return toys.add_data(run, folder / "base")


def in_little_memory(*arguments: str, limit: int = LIMIT) -> tuple[int, str]:
    """Run a command in a process that may allocate `limit` bytes; its peak of anonymous memory, and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(limit), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "MALLOC_ARENA_MAX": "2"},
    )
    peak = 0
    while process.poll() is None:
        if found := re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text()):
            peak = max(peak, int(found[1]) * 1024)
        time.sleep(0.02)
    assert process.stdout is not None
    said = process.stdout.read()
    assert process.returncode in (0, 1), said[-3000:]  # random weights may not reach a limit of their precision
    print(said[-2000:])
    return peak, said


def sizes_of(base: Path) -> Sizes:
    return Sizes.of({name: place.shape for name, place in TensorFiles.of_folder(base).places.items()})


def scored(out: Path) -> dict[str, object]:
    verdict = json.loads((out / "verify.json").read_text())
    assert "exported" in verdict["artefacts"][0]["parity"], verdict
    return dict(verdict["artefacts"][0]["parity"])


def test_two_layers_of_a_7b_are_verified_without_the_model_in_memory(tmp_path: Path) -> None:
    run = wide_run(tmp_path, 2, toys.VOCABULARY)
    out = run / "export" / "gguf-lora"
    in_little_memory("merge-export", "--no-verify", "--run", str(run), "--format", "gguf-lora")
    needed = verification_memory(sizes_of(tmp_path / "base"), 4, on_card=False, held=0)
    peak, _ = in_little_memory("verify", str(out), "--pairs", "1", limit=2 * GIB)
    print(f"peak {peak / GIB:.2f} GiB, foreseen {needed / GIB:.2f}")
    assert set(scored(out)) == {"base", "trained", "merged", "rounded base", "exported"}
    assert peak == pytest.approx(needed, rel=0.1)
    assert peak < 4 * sizes_of(tmp_path / "base").everything + (1 << 29), "the model in float32 and the process"


@pytest.mark.slow
@pytest.mark.parametrize("format", ["safetensors", "gguf"])
def test_the_peak_does_not_grow_with_the_layers(tmp_path: Path, format: str) -> None:
    peaks = {}
    for layers in (2, 4, 8):
        folder = tmp_path / str(layers)
        folder.mkdir()
        run = wide_run(folder, layers, 32000)
        in_little_memory("merge-export", "--no-verify", "--run", str(run), "--format", format)
        peaks[layers], _ = in_little_memory("verify", str(run / "export" / format), "--pairs", "4")
        scored(run / "export" / format)
        needed = verification_memory(sizes_of(folder / "base"), 4, on_card=False, held=0)
        print(f"{layers} layers: peak {peaks[layers] / GIB:.3f} GiB, foreseen {needed / GIB:.3f}")
        assert peaks[layers] == pytest.approx(needed, rel=0.1)
    slope = (peaks[8] - peaks[2]) / 6
    at_32 = peaks[8] + 24 * max(slope, 0)
    print(f"{slope / 2**20:.1f} MiB a layer: {at_32 / GIB:.2f} GiB for 32 layers")
    assert at_32 < LIMIT


@pytest.mark.slow
def test_a_7b_is_verified_in_3_gib(tmp_path: Path) -> None:
    """14.5 GB of weights; the adapter as GGUF, so that all four models are scored and nothing large is written."""
    run = wide_run(tmp_path, 32, 32000)
    assert sizes_of(tmp_path / "base").everything > 7_200_000_000
    in_little_memory("merge-export", "--no-verify", "--run", str(run), "--format", "gguf-lora")
    began = time.monotonic()
    peak, _ = in_little_memory("verify", str(run / "export" / "gguf-lora"), "--pairs", "1")
    print(f"peak {peak / GIB:.2f} GiB in {time.monotonic() - began:.0f} s")
    assert set(scored(run / "export" / "gguf-lora")) == {"base", "trained", "merged", "rounded base", "exported"}
    assert peak < LIMIT
