"""What `train.grid` costs: one optimizer step with and without it, two copies of one model in one process, interleaved.

    python -m benchmarks.grid --out benchmarks/results/grid-cpu.json
    python -m benchmarks.grid --device cuda --base mistral-7b-random

Before each step the adapter is changed a little, as the optimizer does it, so that every step rounds anew.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure, models, packed, workloads
from qdpo.engine.on_grid import put_on_grid
from qdpo.export.gguf.trained_grids import fit_grids
from qdpo.files import write_json
from qdpo.hardware import cpu_name, find_device, mixed_precision
from qdpo.model.grid_file import Grids, save_grids
from qdpo.model.lora import trainable
from qdpo.training.metrics import Metrics

PAIRS = {"W1": 8, "W2": 8, "W3": 16}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> int:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--base", default="mistral-57m-random", choices=list(models.SHAPES))
    parser.add_argument("--kinds", nargs="+", default=["q4_k_m", "q4_0", "q8_0"])
    parser.add_argument("--workloads", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--budget", type=int, default=1024, help="packed tokens of a micro-batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    rows = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        engines = {
            kind: stack.enter_context(engine_of(args.base, device, kind, Path(folder))) for kind in (None, *args.kinds)
        }
        for name in args.workloads:
            count = PAIRS[name]
            pairs = workloads.synthetic(name, count)
            steps = {
                str(kind): partial(step, policy, engine, pairs, packed.Settings(budget=args.budget))
                for kind, (policy, engine) in engines.items()
            }
            for run in steps.values():
                run()
            times = measure.interleaved(steps, args.rounds, device)
            for kind in args.kinds:
                found = measure.ratio(times[str(None)], times[kind], "wall" if device.type == "cuda" else "cpu")
                rows.append({"workload": name, "grid": kind, "pairs": count, **found})
                print(
                    f"{name} {kind}: a step takes {found['ratio']:.3f} times as long "
                    f"[{found['lowest']:.3f}, {found['highest']:.3f}], {args.rounds} rounds"
                )
    if args.out:
        where = cpu_name() if device.type == "cpu" else torch.cuda.get_device_name()
        write_json(args.out, {"base": args.base, "device": where, "torch": version("torch"), "rows": rows})
    return 0


@contextlib.contextmanager
def engine_of(base: str, device: torch.device, kind: str | None, folder: Path) -> Any:
    """A policy and its engine, on the grid of a kind or on none."""
    from peft import LoraConfig, get_peft_model

    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = models.random_base(base, device, dtype, nf4=True)
    policy = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules=TARGETS))
    models.give_lora_b_values(policy)
    autocast = mixed_precision(find_device(), dtype)
    with packed.ready(policy, packed.Settings(), device, autocast) as engine:
        if kind is not None:
            config = {**model.config.to_dict(), "architectures": ["MistralForCausalLM"]}
            save_grids(folder / kind, kind, fit_grids(model, config, kind))
            put_on_grid(policy, Grids(folder / kind))
        yield policy, engine


def step(policy: Any, engine: Any, pairs: Any, settings: packed.Settings) -> None:
    """One step with an adapter that has just been changed."""
    with torch.no_grad():
        for parameter in trainable(policy).values():
            parameter.mul_(1.0001)
            parameter.grad = None
    packed.step(policy, pairs, engine, settings, torch.zeros(len(pairs), 2), Metrics())


if __name__ == "__main__":
    sys.exit(main())
