"""The T4 notebook from end to end within the limits of Colab's free T4 machine, on a base of 7B's width.

The machine has 12.7 GB of memory, 2 cores and 78 GB of free disk. Here:

- Memory: each process of the tree may have 12.7 GB of data (`RLIMIT_DATA`), and the anonymous pages of the whole tree
  are summed every 20 ms. A memory cgroup would need rights that a test does not have, and would count the pages of
  mapped files too, which the kernel drops when it needs them.
- Cores: the tree is bound to two.
- Disk: what the notebook has written is measured after every cell.

The base has 4 layers, and the card is pretended: everything is computed on the CPU, where the NF4 base, adapters and
activations, which a T4 holds itself, are host memory as well. So this is more than the notebook takes beside a card.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.bases import require_space, sizes_of, write_base, write_pairs
from notebooks.kernel import Session, pretend, session

from qdpo.planner.shapes import MISTRAL_7B

GB, GIB = 10**9, 1 << 30
MEMORY, CORES, DISK = 12.7 * GB, 2, 78 * GB
ALLOWED = 11 * GIB
"""Of host memory, for every cell at 32 layers; the rest of the 12.7 GB is the system's."""

LAYERS = 4
BASE = {**MISTRAL_7B, "num_hidden_layers": LAYERS}
NF4 = 0.52
"""Bytes of a weight in NF4 with doubly quantized scales."""


class Watched:
    """A process and all that it has started.

    Attributes:
        peak: the most bytes of anonymous memory that they had together since `begin`.
    """

    def __init__(self, process: int) -> None:
        self.process, self.peak = process, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Count anew."""
        self.peak = self._now()
        Path(f"/proc/{self.process}/clear_refs").write_text("5")  # the kernel process's VmHWM

    def own_peak(self) -> int:
        """`VmHWM` of the process itself, mapped files among it."""
        return status(self.process, "VmHWM:")

    def end(self) -> None:
        """Stop looking."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, self._now())

    def _now(self) -> int:
        return sum(status(process, "RssAnon:") for process in tree(self.process))


def status(process: int, name: str) -> int:
    """Bytes that Linux tells of a process; 0 when it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0


def tree(process: int) -> Iterator[int]:
    """A process and its descendants."""
    yield process
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                yield from tree(int(child))


def size(*folders: Path) -> int:
    """Bytes on disk; a file with two names once."""
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    found[path.stat().st_ino] = path.stat().st_size
    return sum(found.values())


@contextlib.contextmanager
def two_cores() -> Iterator[None]:
    """What is started inside has two cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:CORES]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def limited(notebook: Session) -> int:
    """Limit the kernel's process and what it starts; returns its number."""
    process = int(notebook.insert("import os; print(os.getpid())"))
    resource.prlimit(process, resource.RLIMIT_DATA, (int(MEMORY), int(MEMORY)))
    return process


def test_more_than_the_machine_has_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative: the limit holds, in the kernel and in what it starts, and the sampling sees what is taken."""
    with session("garrulus_t4", tmp_path, {}, monkeypatch) as notebook:
        process = limited(notebook)
        take = "print('refused')\ntry:\n    bytearray(13 * 10**9)\n    print('taken')\nexcept MemoryError:\n    pass"
        assert "taken" not in notebook.insert(take)
        assert "MemoryError" in notebook.insert('!{__import__("sys").executable} -c "bytearray(13 * 10**9)"')
        watched = Watched(process)
        try:
            watched.begin()
            notebook.insert('!{__import__("sys").executable} -c "import time; b = bytearray(3 * 10**8); time.sleep(1)"')
            assert watched.peak > 0.3 * GB
        finally:
            watched.end()


@pytest.mark.slow
def test_every_cell_fits_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, walked = sizes_of(MISTRAL_7B).parameters, sizes_of(BASE).parameters
    require_space(tmp_path, 6 * 2 * walked)
    write_base(tmp_path / "base", BASE, torch.device("cpu"), torch.bfloat16, shard_bytes=GIB)
    write_pairs(tmp_path, rows=8, heldout=4, long_every=100)
    cache = tmp_path / "cache"
    monkeypatch.setenv("QDPO_CACHE", str(cache))
    pretend(tmp_path / "bin", monkeypatch, gpu=True)
    settings: dict[str, Any] = {
        "MODEL": "base",
        "DATA": "train.jsonl",
        "OVERRIDES": {
            "gpu_memory_gib": None,  # trains without a card
            "model.dtype": "float32",  # a CPU does not compute in a T4's float16
            "data.eval_name": "heldout.jsonl",
            "data.eval_split": "train",
            "train.max_steps": 2,
            "train.warmup_steps": 0,
            "train.pairs_per_step": 2,
            "samples.count": 0,
            "verify.pairs": 2,
        },
        "QUICKSTART_STEPS": 2,
    }
    rows = []
    with two_cores(), session("garrulus_t4", tmp_path, settings, monkeypatch, timeout=3600) as notebook:
        watched = Watched(limited(notebook))
        try:
            for number in notebook.code:
                watched.begin()
                begin = time.monotonic()
                notebook.run(number)
                seconds = time.monotonic() - begin
                source = notebook.cells.cells[number].source
                last = next(line for line in reversed(source.splitlines()) if line.strip())
                rows.append((last[:48], seconds, watched.peak, watched.own_peak(), size(tmp_path)))
                cell, *_, disk = rows[-1]
                print(
                    f"{cell:48} {seconds:6.0f} s {watched.peak / GIB:6.2f} GiB {disk / GB:6.2f} GB of disk", flush=True
                )
        finally:
            watched.end()
        assert "passed" in notebook.insert("print(proof.word)")
    more = (whole - walked) * NF4
    for cell, _, peak, _, disk in rows:
        assert peak < MEMORY, cell
        assert peak < 4 * walked, f"{cell}: as much as the whole model in float32"
        # a layer more is its NF4 weights more, in every cell that has a model at all
        assert peak + more < ALLOWED, cell
        assert disk * whole / walked < DISK, cell
