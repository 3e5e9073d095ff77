"""qdpo's packed engine beside stock TRL: one process, one model, the same pairs, interleaved.

    python -m benchmarks.engine --workloads W1,W2,W3,W4 --memory --out benchmarks/results/cpu.json
    python -m benchmarks.engine --workloads winogrande,preference --winogrande FILE --preference FILE --tokenizer FOLDER
    python -m benchmarks.engine --curve
    python -m benchmarks.engine --device cuda --base mistral-7b-random --nf4 --budget 8192

Every variant does one optimizer step's forward and backward over the same global batch. Its loss and its gradient are
compared with stock TRL's before anything is timed. Ratios are taken round by round against `stock` (TRL's defaults
but for the micro-batch, which is the fastest of 1, 2, 4 and 8 pairs on this workload) and against `stock, 4 pairs at
once`, both with checkpointing on and the reference in each step.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure, models, packed, stock, workloads
from qdpo.data.pairs import TokenPair
from qdpo.hardware import cpu_name
from qdpo.memory.meter import peak_bytes
from qdpo.packing.engine import Engine
from qdpo.packing.layout import packed_tokens, padded_tokens
from qdpo.training.metrics import Metrics

BASELINES = {"ratio": "stock", "ratio_to_4": "stock, 4 pairs at once"}

PAIRS = {"W1": 8, "W2": 8, "W3": 16, "W4": 8, "winogrande": 16, "preference": 8}

# name: (checkpointing, micro-batch, reference precomputed)
STOCK: dict[str, tuple[bool, int | None, bool]] = {
    "stock": (True, None, False),
    "stock, 4 pairs at once": (True, 4, False),
    "stock defaults (8 pairs)": (True, 8, False),
    "stock cached": (True, None, True),
    "stock cached, no checkpointing": (False, None, True),
}


def packed_variants(budget: int) -> dict[str, packed.Settings]:
    """The settings of the engine that are compared."""
    cached = packed.Settings(budget=budget)
    return {
        "packed": replace(cached, cached=False),
        "packed cached": cached,
        "packed cached, no checkpointing": replace(cached, checkpointed=0),
        "packed cached, one pair a row": replace(cached, budget=1),
        "packed cached, nothing fused": replace(cached, linear=False, mlp=False, norm=False),
        "packed cached, norm not fused": replace(cached, norm=False),
        "packed cached, mlp not fused": replace(cached, mlp=False),
        "packed cached, nothing skipped": replace(cached, skip_unscored=False),
        "packed cached, all layers checkpointed": replace(cached, checkpointed=1000),
    }


class Bench:
    """One model, one workload, all variants.

    Attributes:
        pairs: the global batch.
        trainer: TRL's, around the model.
        engine: qdpo's, around the same model.
    """

    def __init__(self, trainer: Any, pairs: list[TokenPair], device: torch.device, micro_batch: int) -> None:
        self.trainer, self.pairs, self.device, self.micro_batch = trainer, pairs, device, micro_batch
        self.policy = trainer.model
        self.engine = Engine(self.policy.get_base_model(), device, trainer.compute_loss_context_manager)
        with packed.ready(self.policy, packed.Settings()):
            self.reference = packed.reference(self.policy, pairs, self.engine, 8192)

    def stock(self, checkpointing: bool, micro_batch: int | None, cached: bool) -> float:
        """One step of TRL."""
        if checkpointing:
            self.policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            self.policy.gradient_checkpointing_disable()
        self.policy.train()
        collated = stock.batches(self.trainer, self.pairs, micro_batch or self.micro_batch, self.device)
        return stock.step(self.trainer, collated, len(self.pairs), self.reference if cached else None)

    def packed(self, settings: packed.Settings) -> float:
        """One step of qdpo."""
        return packed.step(self.policy, self.pairs, self.engine, settings, self.reference, Metrics())

    def clear(self) -> None:
        """Drop gradients."""
        for parameter in self.policy.parameters():
            parameter.grad = None

    def gradient(self) -> Tensor:
        """All gradients as one vector."""
        return torch.cat([p.grad.flatten().double() for p in self.policy.parameters() if p.grad is not None])

    def variants(self, budget: int, wanted: list[str] | None) -> dict[str, Callable[[], float]]:
        """What to run, by name; the packed ones set the model up and give it back outside the clock."""
        runs: dict[str, Callable[[], float]] = {name: partial(self.stock, *how) for name, how in STOCK.items()}
        runs |= {name: partial(self.packed, settings) for name, settings in packed_variants(budget).items()}
        return {
            name: run for name, run in runs.items() if wanted is None or name in wanted or name in BASELINES.values()
        }


def compare(bench: Bench, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Correctness, times and peaks of every variant on one workload."""
    settings = packed_variants(args.budget)
    runs = bench.variants(args.budget, args.variants)
    result: dict[str, Any] = {
        "pairs": len(bench.pairs),
        "tokens": {
            "padded": _padded(bench, bench.micro_batch),
            "padded_4": _padded(bench, 4),
            "real": sum(map(padded_tokens, bench.pairs)),
            "packed": sum(map(packed_tokens, bench.pairs)),
        },
        "budget": args.budget,
        "stock_micro_batch": bench.micro_batch,
        "variants": {},
    }
    first: tuple[float, Tensor] | None = None
    losses, errors, peaks = {}, {}, {}
    times: dict[str, list[measure.Timing]] = {key: [] for key in runs}
    for turn in range(args.rounds + 1):
        for key, run in runs.items():
            bench.clear()
            with _set_up(bench, settings.get(key)):
                if turn:
                    times[key].append(measure.timed(run, bench.device))
                    continue
                losses[key] = run()
                gradient = bench.gradient()
                first = first or (losses[key], gradient)
                errors[key] = float((gradient - first[1]).norm() / first[1].norm())
                if args.memory:
                    bench.clear()
                    peaks[key] = peak_bytes(run, bench.device)
    for key in runs:
        entry: dict[str, Any] = {"loss": losses[key], "gradient_difference": errors[key]}
        if key in peaks:
            entry["peak_bytes"] = peaks[key]
            entry |= {name.replace("ratio", "peak_ratio"): peaks[key] / peaks[base] for name, base in BASELINES.items()}
        if args.rounds:
            entry |= {
                f"{clock}{name.removeprefix('ratio')}": measure.summary(times[key], times[base], clock)
                for clock in ("cpu", "wall")
                for name, base in BASELINES.items()
            }
        result["variants"][key] = entry
    _print(name, result)
    return result


def _padded(bench: Bench, micro_batch: int) -> int:
    """Tokens that stock TRL computes, padding included."""
    batches = stock.batches(bench.trainer, bench.pairs, micro_batch, torch.device("cpu"))
    return sum(batch["input_ids"].numel() for batch in batches)


def _set_up(bench: Bench, settings: packed.Settings | None) -> Any:
    import contextlib

    return packed.ready(bench.policy, settings) if settings else contextlib.nullcontext()


def _print(name: str, result: dict[str, Any]) -> None:
    tokens = result["tokens"]
    print(
        f"## {name}: {result['pairs']} pairs, tokens padded {tokens['padded']:,} (4 at once: {tokens['padded_4']:,}) "
        f"real {tokens['real']:,} packed {tokens['packed']:,}, "
        f"budget {result['budget']}, stock micro-batch {result['stock_micro_batch']}"
    )
    for key, entry in result["variants"].items():
        line = f"{key:42}"
        if "cpu" in entry:
            cpu, wall = entry["cpu"], entry["wall"]
            line += (
                f" cpu {cpu['seconds']:7.2f} s {cpu['ratio']:5.2f}x [{cpu['lowest']:.2f}-{cpu['highest']:.2f}]"
                f" ({entry['cpu_to_4']['ratio']:.2f}x)"
                f" wall {wall['seconds']:7.2f} s {wall['ratio']:5.2f}x"
            )
        if "peak_bytes" in entry:
            ratios = f"{entry['peak_ratio']:5.2f}x ({entry['peak_ratio_to_4']:.2f}x)"
            line += f" peak {entry['peak_bytes'] / 1e6:7.1f} MB {ratios}"
        print(f"{line} loss {entry['loss']:.6f} gradient {entry['gradient_difference']:.1e}", flush=True)


def curve(trainer: Any, device: torch.device, args: argparse.Namespace) -> list[dict[str, float]]:
    """Time of one step by packed tokens in one row, pairs of 512 packed tokens each."""
    points = []
    sizes = [1024, 2048, 4096, 8192, 16384]
    benches = {size: Bench(trainer, workloads.of_length(size), device, 4) for size in sizes}
    settings = packed.Settings(budget=max(sizes))
    with packed.ready(trainer.model, settings):
        runs = {str(size): partial(bench.packed, settings) for size, bench in benches.items()}
        for run in runs.values():
            run()
        times = measure.interleaved(runs, args.rounds, device)
    for size in sizes:
        seconds = measure.summary(times[str(size)], times[str(sizes[0])], "cpu" if device.type == "cpu" else "wall")
        points.append({"tokens": size, "seconds": seconds["seconds"], "ms_per_token": 1e3 * seconds["seconds"] / size})
        print(f"{size:6} tokens {seconds['seconds']:8.2f} s {points[-1]['ms_per_token']:.3f} ms per token", flush=True)
    return points


def pairs_for(name: str, args: argparse.Namespace) -> list[TokenPair]:
    """The global batch of a workload."""
    n = args.pairs or PAIRS[name]
    if name in workloads.SYNTHETIC:
        return workloads.synthetic(name, n)
    path = {"winogrande": args.winogrande, "preference": args.preference}[name]
    if path is None or args.tokenizer is None:
        raise SystemExit(f"{name} needs --{name} FILE and --tokenizer FOLDER")
    return workloads.from_file(path, args.tokenizer, n)


def best_micro_batch(trainer: Any, pairs: list[TokenPair], device: torch.device) -> int:
    """The micro-batch (1, 2, 4 or 8 pairs) with which stock TRL is fastest on a workload."""
    seconds = {}
    for size in (1, 2, 4, 8):
        bench = Bench(trainer, pairs, device, size)
        seconds[size] = measure.timed(partial(bench.stock, True, size, False), device)
        bench.clear()
    clock = "cpu" if device.type == "cpu" else "wall"
    return min(seconds, key=lambda size: getattr(seconds[size], clock))


def main(argv: list[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default="", help="comma-separated: W1 to W4, winogrande, preference")
    parser.add_argument(
        "--variants", type=lambda text: text.split(";"), help="names as printed, separated by semicolons; default: all"
    )
    parser.add_argument("--base", default="mistral-57m-random", choices=models.SHAPES)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--nf4", action="store_true", help="the base in 4 bits (bitsandbytes)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="compute type; default by device")
    parser.add_argument("--rank", type=int, default=16, help="of the adapter on all seven projections")
    parser.add_argument("--pairs", type=int, help="pairs of the global batch")
    parser.add_argument("--budget", type=int, default=2048, help="packed tokens of one micro-batch")
    parser.add_argument("--micro-batch", type=int, default=4, help="pairs of stock TRL's; 0 tries 1, 2, 4 and 8")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds after the one that compares gradients")
    parser.add_argument("--memory", action="store_true", help="measure peaks too")
    parser.add_argument("--curve", action="store_true", help="step time from 1k to 16k packed tokens in one row")
    parser.add_argument("--winogrande", type=Path, help="Winogrande JSONL")
    parser.add_argument("--preference", type=Path, help="preference file")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer folder for the files")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore")

    device = torch.device(args.device)
    if device.type == "cpu":
        dtype = getattr(torch, args.dtype or "float32")
        half = None
        machine = cpu_name()
    else:
        new = torch.cuda.get_device_capability() >= (8, 0)
        dtype = getattr(torch, args.dtype or ("bfloat16" if new else "float16"))
        half = "bf16" if dtype == torch.bfloat16 else "fp16"
        machine = torch.cuda.get_device_name()
    base = models.random_base(args.base, device, dtype, args.nf4)
    trainer = stock.make_trainer(base, args.rank, checkpointing=True, half=half)
    models.give_lora_b_values(trainer.model)
    record: dict[str, Any] = {
        "device": device.type,
        "machine": machine,
        "threads": torch.get_num_threads(),
        "versions": {name: sys.modules[name].__version__ for name in ("torch", "transformers", "trl", "peft")},
        "base": {"name": args.base, "nf4": args.nf4, "dtype": str(dtype).removeprefix("torch."), "rank": args.rank},
        "workloads": {},
    }
    for name in filter(None, args.workloads.split(",")):
        pairs = pairs_for(name, args)
        micro_batch = args.micro_batch or best_micro_batch(trainer, pairs, device)
        record["workloads"][name] = compare(Bench(trainer, pairs, device, micro_batch), name, args)
    if args.curve:
        record["curve"] = curve(trainer, device, args)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
