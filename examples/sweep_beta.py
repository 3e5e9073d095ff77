"""A sweep: plan first, then one run for each beta, and their results side by side."""

from collections.abc import Sequence
from pathlib import Path

import qdpo


def main(
    folder: Path = Path("runs/sweep"),
    preset: str = "quickstart",
    betas: Sequence[float] = (0.05, 0.1, 0.3),
    steps: int = 60,
) -> dict[float, float]:
    """Returns the held-out reward accuracy that each beta ends with."""
    config = qdpo.Config.load(preset, {"train.max_steps": steps})
    plan = qdpo.plan(config)
    print(plan.summary())
    if plan.verdict.kind == "does not fit":
        return {}

    results = {}
    for beta in betas:
        try:
            run = qdpo.train(config, {"loss.beta": beta}, run_dir=folder / f"beta-{beta}")
        except qdpo.QdpoError as error:  # Ctrl-C is no such error: it ends the sweep
            print(f"beta {beta}: {error}")
            continue
        results[beta] = run.metrics.curve("rewards/accuracies")[-1][1]
    return results


if __name__ == "__main__":
    for beta, accuracy in main().items():
        print(f"beta {beta:<5} held-out reward accuracy {accuracy:.1%}")
