"""Runs that are disturbed, resumed, and compared with the same run left alone."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from faults.preloaded import Process, Server
from training.tiny import Tiny, make_tiny

from qdpo.files import STAGING_PREFIX, manifest_problems, sha256_file
from qdpo.run.metrics import read_metrics

SAVE_EVERY = 5
SETTINGS = (
    *("train.pairs_per_step=4", f"train.save_every={SAVE_EVERY}", "train.eval_every=50", "train.log_every=1"),
    "samples.count=0",
)
DROPOUT = {"off": (), "on": ("train.disable_dropout=false", "lora.lora_dropout=0.2")}


@dataclass
class World:
    """What the tests of a module share.

    Attributes:
        tiny: model (its base is loaded in NF4 by bitsandbytes) and data.
        server: starts commands.
        folder: for run directories.
    """

    tiny: Tiny
    server: Server
    folder: Path

    def train(self, folder: Path, *settings: str, more: tuple[str | Path, ...] = ()) -> Process:
        """Start a run."""
        overrides = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
        return self.server.start("train", "--preset", self.tiny.preset, "--run-dir", folder, *overrides, *more)

    def resume(self, folder: Path, *more: str | Path) -> Process:
        """Continue a run."""
        return self.server.start("train", "--run-dir", folder, "--resume", *more)

    def straight(self, *settings: str) -> Straight:
        """The same run left alone, trained once."""
        if settings not in self._known():
            folder = self.folder / f"straight-{len(self._known())}"
            process = self.train(folder, *settings)
            assert process.wait() == 0, process.said()
            self._known()[settings] = Straight(adapter_sha256(folder))
        return self._known()[settings]

    def _known(self) -> dict[tuple[str, ...], Straight]:
        return self.__dict__.setdefault("straights", {})


@dataclass(frozen=True)
class Straight:
    """An uninterrupted run.

    Attributes:
        sha256: of its adapter.
    """

    sha256: str


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """A world in a folder, with a cache of its own."""
    tiny = make_tiny(folder / "tiny")
    with Server(folder, {"QDPO_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}) as server:
        yield World(tiny, server, folder)
    shutil.rmtree(folder, ignore_errors=True)


def adapter_sha256(folder: Path) -> str:
    """Identifies a finished run's adapter."""
    return sha256_file(folder / "adapter" / "adapter_model.safetensors")


def state_of(folder: Path) -> str:
    """What run.json says of a run."""
    return json.loads((folder / "run.json").read_text())["state"]


def staging(folder: Path) -> list[str]:
    """What interrupted writes have left anywhere in a run directory."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(f"{STAGING_PREFIX}*"))


def steps_saved(folder: Path) -> list[int]:
    """The steps that have a checkpoint."""
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))


def steps_done(folder: Path) -> int:
    """The last step that a run has logged; a line that was cut short counts as not logged."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


def wait_for(condition: Callable[[], bool], process: Process, seconds: float = 120, every: float = 0.01) -> None:
    """Wait until something is so, looking every so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened in {seconds} s:\n{process.said()}"
        time.sleep(every)


def at_any_moment(draw: random.Random, folder: Path, process: Process, steps: int) -> None:
    """Wait for a random moment between a run's first file and its last steps.

    The moment is a random step and some more; before the first, a random time. Seconds alone would depend on what else
    the machine does.
    """
    step = draw.randrange(-steps // 5, steps - 2)
    wait_for(lambda: (folder / "run.json").is_file(), process)
    if step < 0:
        time.sleep(draw.uniform(0, 1))
    else:
        wait_for(lambda: steps_done(folder) >= step, process)
        time.sleep(draw.uniform(0, 0.05))


def in_a_save(draw: random.Random, folder: Path, process: Process, steps: int) -> None:
    """Wait for a random moment inside a random save."""
    checkpoints = folder / "checkpoints"
    last = draw.randrange(0, steps - SAVE_EVERY, SAVE_EVERY)
    if last:
        wait_for(lambda: (checkpoints / f"step-{last:06d}").is_dir(), process)
    wait_for(lambda: any(checkpoints.glob(f"{STAGING_PREFIX}step-*")), process, every=0.0003)
    time.sleep(draw.uniform(0, 0.012))


def assert_whole(folder: Path, straight: Straight, steps: int) -> None:
    """A run that was disturbed and resumed has ended as if nothing had happened."""
    assert state_of(folder) == "finished"
    assert adapter_sha256(folder) == straight.sha256
    assert staging(folder) == []
    assert not (folder / ".lock").exists()
    assert steps_saved(folder)[-1] == steps
    for step in steps_saved(folder):
        assert manifest_problems(folder / "checkpoints" / f"step-{step:06d}") == []
    trained = [line["step"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    assert trained == list(range(1, steps + 1))
