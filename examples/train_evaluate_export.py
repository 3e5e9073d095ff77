"""From a preset to a proven file: train, ask what the curves mean, evaluate, export, verify."""

import sys
from pathlib import Path

import qdpo


def main(run_dir: Path = Path("runs/example"), preset: str = "quickstart", steps: int = 60) -> qdpo.Export:
    """Train once, or take the run that is there; returns the export."""
    if (run_dir / "run.json").exists():
        run = qdpo.Run.open(run_dir)
    else:
        run = qdpo.train(preset, {"train.max_steps": steps}, run_dir=run_dir)
    for verdict in run.verdicts():
        print(f"{verdict.kind}: {verdict.says}")

    found = run.evaluate()
    print(f"scored {found['data']['pairs']} held-out pairs")

    export = run.export("safetensors")
    proof = export.verify()
    if not proof:
        sys.exit(f"{export.path} is not to be used: {proof.verdict}")
    print(f"{export.path}: {proof.verdict}")
    return export


if __name__ == "__main__":
    main()
