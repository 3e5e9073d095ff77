"""Does a part of the pairs do as well as all of them? Full run, 30 % by each criterion, 30 % at random, 30 % of steps.

    python -m benchmarks.select quickstart --out benchmarks/results/select-quickstart.json
    python -m benchmarks.select blimp --data BLiMP.zip --model stories260K --out benchmarks/results/select-blimp.json
    python -m benchmarks.select chat --data dpo_en_demo.json --model stories260K --out FILE.json

All runs of a set have the same number of epochs, so a part has a part of the steps; the other control, `steps`, takes
as few steps over all pairs. Every run is scored on the same
held-out pairs; differences are paired by row, averaged over seeds, with bootstrap intervals over rows. Time is that of
the whole command: loading, reading, training, the evaluation at its end, and for a part also what choosing it took,
the short run included that `run` and `new` ask. `quickstart-swapped` is the quickstart with a quarter of the training
labels swapped: what choosing does where labels are wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import qdpo
from qdpo.api.selecting import READS, select_pairs
from qdpo.data.files import readers
from qdpo.evaluation.statistics import bootstrap_ratios
from qdpo.files import write_json
from qdpo.hardware import cpu_name
from qdpo.model.source import ASSETS
from qdpo.run.folder import EVALUATION, PAIRS

KEEP, PILOT = 0.3, 0.1
"""Shares of the pairs: of a part, and of the short run that `run` and `new` ask."""
SWAPPED = 0.25


@dataclass(frozen=True)
class Set:
    """Pairs, a model, and a recipe.

    Attributes:
        preset: of the runs.
        train, heldout: files of pairs.
        model: the base.
        settings: overrides of the preset.
        epochs: of every run.
        batch: pairs of a step.
    """

    preset: str
    train: Path
    heldout: Path
    model: str
    settings: tuple[str, ...]
    epochs: float
    batch: int


def main() -> int:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=list(SETS))
    parser.add_argument("--data", type=Path, default=Path(), help="of blimp and chat: the file")
    parser.add_argument("--model", default="quickstart", help="of blimp and chat: the base")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--by", nargs="+", default=["steps", "random", "length", "base", "hard", "run", "new"])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chosen = SETS[args.set](Path(folder), args.data, args.model)
        found: dict[str, list[dict[str, Any]]] = {}
        for seed in args.seeds:
            for by in ("full", *args.by):
                found.setdefault(by, []).append(one_run(chosen, by, seed, Path(folder) / f"{by}-{seed}"))
                write_json(args.out, report(args.set, chosen, found))
    for name, row in report(args.set, chosen, found)["rows"].items():
        print(f"{name:7} accuracy {row['accuracy']} margin {row['margin']} time {row['processor_time_ratio']:.2f}")
    return 0


def one_run(chosen: Set, by: str, seed: int, folder: Path) -> dict[str, Any]:
    """Choose, train, and what came out, row by row."""
    folder.mkdir()
    # what another run has already computed would be free
    os.environ["QDPO_CACHE"] = str(folder / "cache")
    wall, processor = time.perf_counter(), time.process_time()
    part = chosen.train if by in ("full", "steps") else choose(chosen, by, seed, folder)
    picked = time.perf_counter() - wall
    run = train(chosen, part, seed, folder / "run", KEEP if by == "steps" else 1.0)
    lines = [json.loads(line) for line in (run / EVALUATION / PAIRS).read_text().splitlines()]
    return {
        "seed": seed,
        "pairs": count(part),
        "choosing_seconds": picked,
        "seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - processor,
        "margins": [round(line["margin"], 4) for line in lines],
        "prefers_chosen": [int(line["prefers_chosen"]) for line in lines],
    }


def choose(chosen: Set, by: str, seed: int, folder: Path) -> Path:
    """A part of the pairs as a file."""
    asked: dict[str, Any] = {}
    if by in ("run", "new"):
        pilot = folder / f"pilot{chosen.train.suffix}"
        select_pairs(chosen.train, pilot, ["random"], keep=PILOT, seed=seed)
        asked["run"] = str(train(chosen, pilot, seed, folder / "pilot-run"))
    elif by in ("base", "hard"):
        asked |= {"model": chosen.model, "overrides": [s for s in chosen.settings if s.startswith(READS)]}
    part = folder / f"part{chosen.train.suffix}"
    select_pairs(chosen.train, part, [by], keep=KEEP, seed=seed, **asked)
    return part


def train(chosen: Set, pairs: Path, seed: int, folder: Path, share: float = 1.0) -> Path:
    """A run of a share of the epochs over some pairs; its folder."""
    steps = max(1, round(share * count(pairs) * chosen.epochs / chosen.batch))
    settings = [
        *chosen.settings,
        f"data.name={pairs}",
        f"data.eval_name={chosen.heldout}",
        f"train.max_steps={steps}",
        f"train.warmup_steps={max(1, round(steps / 12))}",
        "train.warmup_ratio=0",
        f"train.eval_every={steps}",
        f"train.pairs_per_step={chosen.batch}",
        f"train.seed={seed}",
    ]
    return Path(qdpo.train(chosen.preset, settings, run_dir=folder).path)


def count(path: Path) -> int:
    """Rows of a file."""
    return sum(1 for _ in readers.read(path))


def report(name: str, chosen: Set, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What is kept: for each way of choosing, what it reached, less what all and random ones did."""
    columns = {by: _columns(runs) for by, runs in found.items()}
    rows = {}
    for by, runs in found.items():
        row: dict[str, Any] = {
            "seeds": len(runs),
            "pairs": runs[0]["pairs"],
            **{key: _estimate(values) for key, values in columns[by].items()},
            "by_seed": {"accuracy": [float((np.array(r["margins"]) > 0).mean()) for r in runs]},
            "seconds": [round(r["seconds"], 1) for r in runs],
            "choosing_seconds": [round(r["choosing_seconds"], 1) for r in runs],
        }
        for clock in ("seconds", "processor_seconds"):
            full = found["full"][: len(runs)]
            key = "time_ratio" if clock == "seconds" else "processor_time_ratio"
            row[key] = sum(r[clock] for r in runs) / sum(r[clock] for r in full)
        for other in ("full", "random"):
            if by != other and len(found.get(other, [])) >= len(runs):
                base = _columns(found[other][: len(runs)])
                row[f"less_{other}"] = {key: _estimate(columns[by][key] - base[key]) for key in base}
        rows[by] = row
    return {
        "set": name,
        "model": Path(chosen.model).name,
        "heldout": len(found["full"][0]["margins"]),
        "epochs": chosen.epochs,
        "settings": [text for text in chosen.settings if "/" not in text],
        "keep": KEEP,
        "pilot": PILOT,
        "seeds": [run["seed"] for run in found["full"]],
        "device": cpu_name(),
        "torch": version("torch"),
        "qdpo": qdpo.__version__,
        "rows": rows,
    }


def _columns(runs: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """(rows,) means over seeds of what is compared."""
    margins = np.array([run["margins"] for run in runs])
    return {
        "accuracy": (margins > 0).mean(0),
        "prefers_chosen": np.array([run["prefers_chosen"] for run in runs]).mean(0),
        "margin": margins.mean(0),
    }


def _estimate(values: np.ndarray) -> dict[str, float | None]:
    return bootstrap_ratios(values[:, None], np.ones((len(values), 1)))[0].as_dict()


def quickstart(folder: Path, data: Path, model: str) -> Set:
    """The embedded pairs and model, trained by the preference alone."""
    pairs = ASSETS / "pairs"
    settings = ("model.quantization=none", "data.text=null", "loss.loss_type=[sigmoid]", "loss.beta=0.1")
    return Set("quickstart", pairs / "train.jsonl", pairs / "heldout.jsonl", "quickstart", settings, 1.6, 16)


def long(folder: Path, data: Path, model: str) -> Set:
    """The same, three times as long: a part has about as many steps as all pairs have in `quickstart`."""
    base = quickstart(folder, data, model)
    return Set(base.preset, base.train, base.heldout, base.model, base.settings, 3 * base.epochs, base.batch)


def swapped(folder: Path, data: Path, model: str) -> Set:
    """The embedded pairs, a quarter of the training labels swapped."""
    base = quickstart(folder, data, model)
    draw, path = random.Random(0), folder / "swapped.jsonl"
    with path.open("w") as out:
        for row in readers.read(base.train):
            if draw.random() < SWAPPED:
                row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
            out.write(json.dumps(row) + "\n")
    return Set(base.preset, path, base.heldout, base.model, base.settings, base.epochs, base.batch)


def blimp(folder: Path, data: Path, model: str) -> Set:
    """BLiMP: of each of its 67 paradigms 40 pairs to train on and 15 held out."""
    parts: dict[str, list[str]] = {"train": [], "heldout": []}
    with zipfile.ZipFile(data) as archive:
        for name in sorted(n for n in archive.namelist() if n.startswith("data/") and n.endswith(".jsonl")):
            lines = archive.read(name).decode().splitlines()
            random.Random(name).shuffle(lines)
            parts["train"] += lines[:40]
            parts["heldout"] += lines[40:55]
    files = {part: folder / f"{part}.jsonl" for part in parts}
    for part, lines in parts.items():
        random.Random(0).shuffle(lines)
        files[part].write_text("\n".join(lines) + "\n")
    settings = (
        f"model.name={model}",
        "model.quantization=none",
        "data.template=none",
        "data.format=minimal_pairs",
        "data.max_length=96",
        "data.max_prompt_length=32",
        "train.learning_rate=1.0e-3",
    )
    return Set("dpo", files["train"], files["heldout"], model, settings, 2.0, 16)


def chat(folder: Path, data: Path, model: str) -> Set:
    """Real conversations: four fifths to train on, one fifth held out."""
    rows = list(readers.read(data))
    random.Random(0).shuffle(rows)
    cut = len(rows) * 4 // 5
    files = {"train": folder / "train.jsonl", "heldout": folder / "heldout.jsonl"}
    for file, part in zip(files.values(), (rows[:cut], rows[cut:]), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in part))
    settings = (
        f"model.name={model}",
        "model.quantization=none",
        "data.template=zephyr",
        "data.max_length=384",
        "data.max_prompt_length=128",
        "train.learning_rate=1.0e-3",
    )
    return Set("dpo", files["train"], files["heldout"], model, settings, 3.0, 8)


SETS: dict[str, Callable[[Path, Path, str], Set]] = {
    "quickstart": quickstart,
    "quickstart-long": long,
    "quickstart-swapped": swapped,
    "blimp": blimp,
    "chat": chat,
}

if __name__ == "__main__":
    sys.exit(main())
