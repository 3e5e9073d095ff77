"""Sets of benchmark tasks by name, and what the hub calls the tasks in a model-index."""

from __future__ import annotations

from dataclasses import dataclass

from qdpo.errors import UsageError


@dataclass(frozen=True)
class Benchmark:
    """A task of lm-evaluation-harness, with what counts in it.

    Attributes:
        task: lm-eval's name.
        title: what people call it.
        shots: few-shot examples.
        dataset: hub name, configuration and split of its data.
        metric: lm-eval's name of the metric that counts.
        index_metric: type and name of that metric in a model-index.
        filter: lm-eval's name of the filter that the metric is taken after.
    """

    task: str
    title: str
    shots: int
    dataset: tuple[str, str | None, str]
    metric: str
    index_metric: tuple[str, str]
    filter: str = "none"


_ACCURACY, _NORMALIZED = ("acc", "accuracy"), ("acc_norm", "normalized accuracy")

# The six tasks of the first Open LLM Leaderboard, which Garrulus' author submitted to and zephyr-7b-gemma's card
# reports: titles, shots, datasets and metrics as in that card's model-index. The leaderboard ran an lm-eval of 2023;
# today's counts GSM8K by the answer after `####` (strict-match), as that one did.
_ARC = ("ai2_arc", "ARC-Challenge", "test")
_TRUTHFUL = ("truthful_qa", "multiple_choice", "validation")
_WINOGRANDE = ("winogrande", "winogrande_xl", "validation")
_OPEN_LLM_V1 = (
    Benchmark("arc_challenge", "AI2 Reasoning Challenge (25-Shot)", 25, _ARC, "acc_norm", _NORMALIZED),
    Benchmark("hellaswag", "HellaSwag (10-Shot)", 10, ("hellaswag", None, "validation"), "acc_norm", _NORMALIZED),
    Benchmark("mmlu", "MMLU (5-Shot)", 5, ("cais/mmlu", "all", "test"), "acc", _ACCURACY),
    Benchmark("truthfulqa_mc2", "TruthfulQA (0-shot)", 0, _TRUTHFUL, "acc", ("mc2", "mc2")),
    Benchmark("winogrande", "Winogrande (5-shot)", 5, _WINOGRANDE, "acc", _ACCURACY),
    Benchmark("gsm8k", "GSM8k (5-shot)", 5, ("gsm8k", "main", "test"), "exact_match", _ACCURACY, "strict-match"),
)

PRESETS = {"open-llm-v1": _OPEN_LLM_V1}


def preset(name: str) -> tuple[Benchmark, ...]:
    """The tasks of a preset.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in PRESETS:
        raise UsageError(f"there is no set of tasks {name!r}", f"known: {', '.join(PRESETS)}; or name tasks by --tasks")
    return PRESETS[name]


def known(task: str, shots: int | None) -> Benchmark | None:
    """The benchmark that a task with that many shots is, where a preset has it."""
    found = (entry for entries in PRESETS.values() for entry in entries)
    return next((entry for entry in found if (entry.task, entry.shots) == (task, shots)), None)
