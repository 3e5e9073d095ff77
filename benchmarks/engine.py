"""qdpo's packed engine beside stock TRL: one process, one model, the same pairs, interleaved.

    python -m benchmarks.engine --workloads W1,W2,W3,W4 --memory --micro-batch 0 --out benchmarks/results/cpu.json
    python -m benchmarks.engine --workloads winogrande,preference --winogrande FILE --preference FILE --tokenizer FOLDER
    python -m benchmarks.engine --curve
    python -m benchmarks.engine --device cuda --base mistral-7b-random --nf4 --budget 8192

Every variant does one optimizer step's forward and backward over the same global batch, in the precision of
`trainer.train()`. Its loss and its gradient are compared with the first peer's before anything is timed. Ratios are
taken round by round against the peers (`PEERS`), both with checkpointing on and the reference in each step, TRL's
defaults. Their micro-batch is the fastest of 1, 2, 4 and 8 pairs on the workload (`--micro-batch 0`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure, models, packed, stock, workloads
from qdpo.data.pairs import TokenPair
from qdpo.engine.engine import Engine
from qdpo.engine.layout import packed_tokens, padded_tokens
from qdpo.hardware import cpu_name
from qdpo.planner.meter import peak_bytes
from qdpo.training.metrics import Metrics

PAIRS = {"W1": 8, "W2": 8, "W3": 16, "W4": 8, "winogrande": 16, "preference": 8}

BUDGETS = {"W1": 1024, "W2": 1024, "W3": 300, "W4": 1536, "winogrande": 300, "preference": 2048}
"""Packed tokens of one micro-batch: as many as keep a step (reference cached) within the memory of either peer's."""


@dataclass(frozen=True)
class Stock:
    """How TRL runs.

    Attributes:
        stands_in: its output head is exchanged, see `benchmarks.stock`.
        checkpointed: gradient checkpointing, TRL's default.
        micro_batch: pairs; None is the peer's fastest.
        cached: the reference's log-probabilities are known.
    """

    stands_in: bool = False
    checkpointed: bool = True
    micro_batch: int | None = None
    cached: bool = False


PEERS = {"TRL": Stock(), "TRL, stand-in head": Stock(stands_in=True)}
"""What is compared with: TRL as its users run it, and on a CPU what stands for TRL on a GPU."""

STOCK = {
    **PEERS,
    "TRL cached": Stock(cached=True),
    "TRL, stand-in head, cached": Stock(stands_in=True, cached=True),
    "TRL, stand-in head, cached, no checkpointing": Stock(stands_in=True, cached=True, checkpointed=False),
    "TRL, 8 pairs at once (its default)": Stock(micro_batch=8),
}

NOT_HERE = {
    "unsloth": "unsloth 2026.10 takes TRL up to 1.15, and UNSLOTH_FUSED_PREFERENCE_LOSS=1 changes a function "
    "(concatenated_forward) that the DPO trainer of 1.15 no longer has",
    "ms-swift": "ms-swift 4.6 takes TRL below 1.0, and its padding-free DPO FlashAttention, which needs a GPU",
}
"""Peers that cannot be in one process with TRL 1.16, and why."""

TABLE = [*PEERS, "packed", "packed cached", "packed cached, no checkpointing"]
"""What is run unless told otherwise: the variants that `benchmarks.table` shows."""


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
        engine: qdpo's, around the same model, while a variant of it is ready.
    """

    def __init__(self, trainer: Any, pairs: list[TokenPair], device: torch.device) -> None:
        self.trainer, self.pairs, self.device = trainer, pairs, device
        self.policy = trainer.model
        self.engine: Engine | None = None
        with packed.ready(self.policy, packed.Settings(), device, trainer.accelerator.autocast) as engine:
            self.reference = packed.reference(self.policy, pairs, engine, 8192)

    def stock(self, how: Stock) -> float:
        """One step of TRL."""
        assert how.micro_batch is not None
        if how.checkpointed:
            self.policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            self.policy.gradient_checkpointing_disable()
        self.policy.train()
        collated = stock.batches(self.trainer, self.pairs, how.micro_batch, self.device)
        return stock.step(self.trainer, collated, len(self.pairs), self.reference if how.cached else None)

    def packed(self, settings: packed.Settings) -> float:
        """One step of qdpo."""
        assert self.engine is not None
        return packed.step(self.policy, self.pairs, self.engine, settings, self.reference, Metrics())

    def ready(self, how: Stock | packed.Settings) -> contextlib.AbstractContextManager[None]:
        """The model and TRL set up for a variant, and given back: outside the clock."""
        if isinstance(how, packed.Settings):
            return self._attached(how)
        return stock.stand_in() if how.stands_in else contextlib.nullcontext()

    @contextlib.contextmanager
    def _attached(self, settings: packed.Settings) -> Iterator[None]:
        with packed.ready(self.policy, settings, self.device, self.trainer.accelerator.autocast) as self.engine:
            yield

    def run(self, how: Stock | packed.Settings) -> float:
        """One step of either."""
        return self.packed(how) if isinstance(how, packed.Settings) else self.stock(how)

    def clear(self) -> None:
        """Drop gradients."""
        for parameter in self.policy.parameters():
            parameter.grad = None

    def gradient(self) -> Tensor:
        """All gradients as one vector."""
        return torch.cat([p.grad.flatten().double() for p in self.policy.parameters() if p.grad is not None])

    def fastest(self, peer: Stock) -> int:
        """The micro-batch (1, 2, 4 or 8 pairs) with which a peer is fastest on the workload.

        Larger ones are not tried any more once one is slower than the best so far by a twentieth.
        """
        seconds: dict[int, float] = {}
        with self.ready(peer):
            for size in (1, 2, 4, 8):
                run = partial(self.stock, replace(peer, micro_batch=size))
                seconds[size] = getattr(measure.timed(run, self.device), clock_of(self.device))
                self.clear()
                if seconds[size] > 1.05 * min(seconds.values()):
                    break
        return min(seconds, key=seconds.__getitem__)


def clock_of(device: torch.device) -> str:
    """Processor time where other programs share the processor, wall time on a GPU."""
    return "cpu" if device.type == "cpu" else "wall"


def peers_on(device: torch.device) -> tuple[dict[str, Stock], dict[str, str]]:
    """The peers that run on a device, and why others do not."""
    here, missing = dict(PEERS), dict(NOT_HERE)
    if device.type == "cuda":
        del here["TRL, stand-in head"]
    elif not stock.own_head_runs(device):
        del here["TRL"]
        missing["TRL"] = f"the head of TRL {version('trl')} needs a GPU; 1.16 runs on a CPU"
    return here, missing


def compare(bench: Bench, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Correctness, times and peaks of every variant on one workload."""
    peers, _ = peers_on(bench.device)
    sizes = {key: args.micro_batch or bench.fastest(peer) for key, peer in peers.items()}
    budget = args.budget or BUDGETS[name]
    variants: dict[str, Stock | packed.Settings] = {}
    for key, how in STOCK.items():
        peer = next((peer for peer in peers if peers[peer].stands_in == how.stands_in), None)
        if peer is not None:
            variants[key] = replace(how, micro_batch=how.micro_batch or sizes[peer])
    variants |= packed_variants(budget)
    if args.variants != ["all"]:
        variants = {key: how for key, how in variants.items() if key in peers or key in args.variants}

    first: tuple[float, Tensor] | None = None
    entries: dict[str, dict[str, Any]] = {key: {} for key in variants}
    times: dict[str, list[measure.Timing]] = {key: [] for key in variants}
    for turn in range(args.rounds + 1):
        for key, how in variants.items():
            bench.clear()
            run = partial(bench.run, how)
            with bench.ready(how):
                if turn:
                    times[key].append(measure.timed(run, bench.device))
                    continue
                loss, gradient = run(), bench.gradient()
                first = first or (loss, gradient)
                difference = float((gradient - first[1]).norm() / first[1].norm())
                entries[key] |= {"loss": loss, "gradient_difference": difference}
                if args.memory:
                    bench.clear()
                    entries[key]["peak_bytes"] = peak_bytes(run, bench.device)
    for key, entry in entries.items():
        entry["against"] = {peer: {} for peer in peers}
        for peer, against in entry["against"].items():
            if args.memory:
                against["peak_ratio"] = entry["peak_bytes"] / entries[peer]["peak_bytes"]
            if args.rounds:
                against |= {clock: measure.ratio(times[key], times[peer], clock) for clock in ("cpu", "wall")}
        if args.rounds:
            entry |= {clock: measure.summary(times[key], clock) for clock in ("cpu", "wall")}
    result = {
        "pairs": len(bench.pairs),
        "tokens": {
            "padded": {peer: _padded(bench, size) for peer, size in sizes.items()},
            "real": sum(map(padded_tokens, bench.pairs)),
            "packed": sum(map(packed_tokens, bench.pairs)),
        },
        "budget": budget,
        "micro_batch": sizes,
        "variants": entries,
    }
    _print(name, result, clock_of(bench.device))
    return result


def _padded(bench: Bench, micro_batch: int) -> int:
    """Tokens that stock TRL computes, padding included."""
    batches = stock.batches(bench.trainer, bench.pairs, micro_batch, torch.device("cpu"))
    return sum(batch["input_ids"].numel() for batch in batches)


def _print(name: str, result: dict[str, Any], clock: str) -> None:
    tokens, sizes = result["tokens"], result["micro_batch"]
    padded = ", ".join(f"{peer} {sizes[peer]} at once {count:,}" for peer, count in tokens["padded"].items())
    print(
        f"## {name}: {result['pairs']} pairs, tokens padded ({padded}) real {tokens['real']:,} "
        f"packed {tokens['packed']:,}, budget {result['budget']}"
    )
    for key, entry in result["variants"].items():
        line = f"{key:44}"
        if clock in entry:
            line += f" {clock} {entry[clock]['seconds']:7.2f} s"
            for against in entry["against"].values():
                ratio = against[clock]
                line += f" {ratio['ratio']:5.2f}x [{ratio['lowest']:.2f}-{ratio['highest']:.2f}]"
        if "peak_bytes" in entry:
            line += f" peak {entry['peak_bytes'] / 1e6:7.1f} MB"
            line += "".join(f" {against['peak_ratio']:5.2f}x" for against in entry["against"].values())
        print(f"{line} loss {entry['loss']:.6f} gradient {entry['gradient_difference']:.1e}", flush=True)


def curve(trainer: Any, device: torch.device, args: argparse.Namespace) -> list[dict[str, float]]:
    """Time of one step by packed tokens in one row, pairs of 512 packed tokens each."""
    points = []
    sizes = [1024, 2048, 4096, 8192, 16384]
    benches = {size: Bench(trainer, workloads.of_length(size), device) for size in sizes}
    settings = packed.Settings(budget=max(sizes))
    with packed.ready(trainer.model, settings, device, trainer.accelerator.autocast) as engine:
        for bench in benches.values():
            bench.engine = engine
        runs = {str(size): partial(bench.packed, settings) for size, bench in benches.items()}
        for run in runs.values():
            run()
        times = measure.interleaved(runs, args.rounds, device)
    for size in sizes:
        seconds = measure.summary(times[str(size)], clock_of(device))["seconds"]
        points.append({"tokens": size, "seconds": seconds, "ms_per_token": 1e3 * seconds / size})
        print(f"{size:6} tokens {seconds:8.2f} s {points[-1]['ms_per_token']:.3f} ms per token", flush=True)
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


def main(argv: list[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default="", help="comma-separated: W1 to W4, winogrande, preference")
    parser.add_argument(
        "--variants",
        type=lambda text: text.split(";"),
        default=TABLE,
        help="names as printed, separated by semicolons, or `all`; the peers run always",
    )
    parser.add_argument("--base", default="mistral-57m-random", choices=models.SHAPES)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--nf4", action="store_true", help="the base in 4 bits (bitsandbytes)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="compute type; default by device")
    parser.add_argument("--rank", type=int, default=16, help="of the adapter on all seven projections")
    parser.add_argument("--pairs", type=int, help="pairs of the global batch")
    parser.add_argument("--budget", type=int, help="packed tokens of one micro-batch; default by workload (BUDGETS)")
    parser.add_argument("--micro-batch", type=int, default=4, help="pairs of the peers'; 0 tries 1, 2, 4 and 8")
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
        machine = cpu_name()
    else:
        new = torch.cuda.get_device_capability() >= (8, 0)
        dtype = getattr(torch, args.dtype or ("bfloat16" if new else "float16"))
        machine = torch.cuda.get_device_name()
    half = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype)
    base = models.random_base(args.base, device, dtype, args.nf4)
    trainer = stock.make_trainer(base, args.rank, checkpointing=True, half=half)
    models.give_lora_b_values(trainer.model)
    record: dict[str, Any] = {
        "device": device.type,
        "machine": machine,
        "threads": torch.get_num_threads(),
        "versions": {name: sys.modules[name].__version__ for name in ("torch", "transformers", "trl", "peft")},
        "base": {"name": args.base, "nf4": args.nf4, "dtype": str(dtype).removeprefix("torch."), "rank": args.rank},
        "not_run": peers_on(device)[1],
        "workloads": {},
    }
    for name in filter(None, args.workloads.split(",")):
        record["workloads"][name] = compare(Bench(trainer, pairs_for(name, args), device), name, args)
    if args.curve:
        record["curve"] = curve(trainer, device, args)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
