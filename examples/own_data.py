"""Your own preference pairs: write them as JSON Lines, see what a run would learn from, plan, train."""

import json
from pathlib import Path

import qdpo

ROWS = [
    {"prompt": f"What is {n} + 1?", "chosen": f"{n + 1}", "rejected": f"I would say that it is {n + 2}."}
    for n in range(400)
]


def main(folder: Path = Path("runs"), preset: str = "quickstart", steps: int = 50) -> qdpo.Run:
    """Train on pairs of your own; returns the run."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    # the same reading, checking and cutting as a run does
    pairs = qdpo.load_pairs(data, preset)
    print(pairs, pairs.text(0), sep="\n")

    config = qdpo.Config.load(preset, {"train.max_steps": steps, "data.contamination": []}, data=str(data))
    print(qdpo.plan(config).verdict.text)
    return qdpo.train(config, run_dir=folder / "sums")


if __name__ == "__main__":
    print(main().metrics.curve("rewards/margins"))
