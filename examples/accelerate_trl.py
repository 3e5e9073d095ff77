"""qdpo's engine in TRL's own trainer: shared prompts, no padding, everything else as TRL does it."""

from pathlib import Path
from typing import Any

from datasets import load_dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

import qdpo


def main(
    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct",
    rows: Any = None,
    folder: Path = Path("runs/trl"),
    **settings: Any,
) -> DPOTrainer:
    """Train a few steps; `settings` are more of DPOConfig's."""
    if rows is None:
        rows = load_dataset("trl-lib/ultrafeedback_binarized", split="train[:500]")
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(output_dir=str(folder), max_steps=20, logging_steps=5, **settings),
        train_dataset=rows,
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
    )
    done = qdpo.accelerate(trainer)
    trainer.train()
    print(f"{done.packed} batches went through qdpo's engine, {done.passed_on} through TRL's")
    return trainer


if __name__ == "__main__":
    main()
