"""What another value of a setting means for a run's result."""

from __future__ import annotations

FREE = "no influence on the result"
CONTENT = "its content decides, and is compared"
ROUNDING = "it may change the last digits"
RESULT = "it changes the result"
NEVER = "a checkpoint cannot be continued with another"

VERDICTS = {
    **dict.fromkeys(("name", "about", "card", "gpu_memory_gib", "notes"), FREE),
    **dict.fromkeys(
        (f"train.{key}" for key in ("log_every", "save_every", "save_minutes", "keep", "report_to", "room_for_export")),
        FREE,
    ),
    **dict.fromkeys(("train.eval_every", "train.gradient_checkpointing", "data.contamination", "data.text"), FREE),
    "model.nf4_cache": FREE,
    **dict.fromkeys(("model.name", "model.revision", "model.tokenizer", "model.adapter"), CONTENT),
    **dict.fromkeys(
        ("train.grid", "lora.r", "lora.bias", "lora.target_modules", "lora.task_type", "train.optim"), NEVER
    ),
}
"""What a changed setting means for the result; of a setting that is not here, `meaning` knows it by its section."""

SECTIONS = {"samples": FREE, "packing": ROUNDING, "data": CONTENT}


def meaning(key: str) -> str:
    """What another value of a setting means for the result: one of the sentences above.

    Args:
        key: dotted.
    """
    return VERDICTS.get(key) or SECTIONS.get(key.partition(".")[0], RESULT)
