"""Runs and exports through the code that `qdpo train` and `qdpo merge-export` call, and what they left."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from training.tiny import TinyRun, read_run

from qdpo.cli.main import main
from qdpo.config.replace import elsewhere
from qdpo.config.resolve import Resolved, resolve, to_yaml
from qdpo.config.schema import RunConfig
from qdpo.planner.settings import with_changes
from qdpo.training.run import train

# Steps that show something from the first on, two evaluations with one short answer each, nothing of an earlier run.
SHORT = (
    "train.warmup_steps=2",
    "train.log_every=1",
    "samples.count=1",
    "samples.max_new_tokens=8",
    "packing.reference_cache=run",
)


LEAST_MEMORY = ("packing.checkpoint_layers=1000", "packing.keep_dequantized=0")
"""All layers are computed twice, no weight is kept: nothing is left to the run, and nothing can be given back."""


@dataclass(frozen=True)
class Done(TinyRun):
    """A finished run, and what memory it took.

    Attributes:
        peak: bytes of tensors at the most; 0 where that is not known.
        reserved: bytes that the allocator held at the most, likewise.
    """

    peak: int = 0
    reserved: int = 0

    @property
    def loss_fell(self) -> bool:
        """All losses are finite, and the last five lie below the first, ln 2, by more than rounding."""
        return all(map(math.isfinite, self.losses)) and sum(self.losses[-5:]) / 5 < self.losses[0] - 0.01

    def as_dict(self) -> dict[str, Any]:
        """For the results."""
        return {
            "losses": [round(loss, 6) for loss in self.losses],
            "seconds": self.record["result"]["seconds"],
            "tokens": self.record["result"]["tokens"],
            "compute": self.record["dtype"]["compute"],
            "engine": self.record["engine"]["way"],
            "recomputed_layers": self.record["engine"].get("checkpointed_layers"),
            "kept_layers": self.record["engine"].get("kept_layers"),
            "optimizer": self.record.get("optimizer", {}).get("name"),
            "gradient_difference": self.record["engine"].get("gradient_difference"),
            "peak_bytes": self.peak,
            "reserved_bytes": self.reserved,
        }


def configured(preset: str, base: Path, data: tuple[Path, Path], steps: int, *overrides: str) -> Resolved:
    """A preset on a base and pairs of ours, for a few steps, with an evaluation before and after them.

    Args:
        preset: its name or file.
        base: the model's folder.
        data: files of training and held-out pairs.
        steps: optimizer steps.
        overrides: as `--set` takes them.
    """
    ends = (f"train.max_steps={steps}", f"train.eval_every={steps}", f"train.save_every={steps}")
    own = [*elsewhere(str(base), str(data[0])), f"data.eval_name={data[1]}", *ends, *SHORT, *overrides]
    return resolve(preset, own)


def as_it_ran(config: RunConfig, record: dict[str, Any]) -> RunConfig:
    """The configuration with what a run chose in place of `auto`.

    Args:
        config: the run's.
        record: its run.json.
    """
    engine = record["engine"]
    layers = {"checkpoint_layers": engine["checkpointed_layers"], "keep_dequantized": engine["kept_layers"]}
    config = with_changes(config, "packing", **layers)
    return with_changes(config, "train", optim=record["optimizer"]["name"])


def run(resolved: Resolved, folder: Path, device: torch.device, *, resume: bool = False) -> Done:
    """Train, all stages as `qdpo train` does.

    Args:
        resolved: the configuration.
        folder: of the run.
        device: whose peaks are taken; those of the attempts before the first step are not counted.
        resume: go on from the newest checkpoint.
    """
    from gpu.memory import free_up

    free_up(device)
    train(resolved, folder, preset=resolved.config.name, command="qdpo train", resume=resume)
    on_card = device.type == "cuda"
    peaks = (torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)) if on_card else (0, 0)
    done = Done(**vars(read_run(folder)), peak=peaks[0], reserved=peaks[1])
    free_up(device)
    return done


def run_outside(resolved: Resolved, folder: Path) -> Done:
    """`qdpo train` in a process of its own, for what must be imported first.

    Args:
        resolved: the configuration.
        folder: of the run; its preset is written beside it.
    """
    preset = folder.with_suffix(".yaml")
    preset.write_text(to_yaml(resolved))
    # the checkout comes last, for tests that run without installation
    places = [part for part in (os.environ.get("PYTHONPATH"), str(Path(__file__).resolve().parents[2])) if part]
    command = [sys.executable, "-m", "qdpo", "train", "--preset", str(preset), "--run-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    subprocess.run(command, check=True, env=environment, cwd=folder.parent, timeout=300)
    return Done(**vars(read_run(folder)))


def export(folder: Path, format: str, *options: str, pairs: int) -> dict[str, Any]:
    """Export a run and verify it, as `qdpo merge-export` does.

    Args:
        folder: the run directory.
        format: of the export.
        options: of the command.
        pairs: held-out pairs to score.

    Returns:
        The exit code, the verdict, and the size of every file.
    """
    code = main(["merge-export", "--run", str(folder), "--format", format, *options, "--pairs", str(pairs)])
    out = folder / "export" / format
    verdict = out / "verify.json"
    return {
        "exit_code": code,
        "verdict": json.loads(verdict.read_text()) if verdict.is_file() else None,
        "bytes": {path.name: path.stat().st_size for path in sorted(out.iterdir())} if out.is_dir() else {},
    }
