"""A run directory as `qdpo train` leaves it, made of invented numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qdpo.config.schema import RunConfig

STEPS, EVAL_EVERY, LOG_EVERY = 120, 40, 5

CONFIG = {
    "name": "quickstart",
    "about": "the embedded demonstration model on embedded pairs",
    "notes": ["A demonstration: a small model."],
    "model": {"name": "quickstart"},
    "data": {"name": "quickstart", "text": "quickstart", "max_length": 128, "max_prompt_length": 96},
    "train": {"max_steps": STEPS, "learning_rate": 1e-3, "eval_every": EVAL_EVERY},
}


def metrics(step: int, heldout: bool) -> dict[str, float]:
    """Metrics of a run that learns: the margin grows, the loss falls."""
    margin = 3.0 * step / STEPS * (0.8 if heldout else 1.0)
    chosen, rejected = margin / 3, -2 * margin / 3
    # Training batches are small, so their metrics jump.
    wobble = 0.0 if heldout else 0.15 * math.sin(step * 1.7)
    return {
        "loss": math.log1p(math.exp(-margin)) + 0.2 * wobble,
        "rewards/chosen": chosen + wobble,
        "rewards/rejected": rejected + wobble / 2,
        "rewards/margins": chosen + wobble / 2 - rejected,
        "rewards/accuracies": min(1.0, 0.5 + margin / 6 + 0.2 * wobble),
        "logps/chosen": -21.5 + chosen * 10,
        "logps/rejected": -20.25 + rejected * 10,
        "logits/chosen": -2.5,
        "logits/rejected": -2.25,
    }


def metric_lines() -> list[dict[str, Any]]:
    """All lines of `metrics.jsonl`, in the order in which a run writes them."""
    lines = [evaluation(0)]
    for step in range(LOG_EVERY, STEPS + 1, LOG_EVERY):
        extra = {"learning_rate": 1e-3, "grad_norm": 1.5, "tokens_per_second": 2345.6, "peak_memory_gib": 1.25}
        lines.append({"step": step, "epoch": step / 60, **metrics(step, heldout=False), **extra})
        if step % EVAL_EVERY == 0:
            lines.append(evaluation(step))
    return lines


def evaluation(step: int) -> dict[str, Any]:
    values = {f"eval_{key}": value for key, value in metrics(step, heldout=True).items()}
    return {"step": step, "epoch": step / 60, **values, "eval_text_nll": 2.0 + step / 1200, "eval_seconds": 1.5}


def run_json() -> dict[str, Any]:
    return {
        "schema": 1,
        "qdpo": "0.1.0",
        "name": "quickstart",
        "preset": "quickstart",
        "created": "2026-01-02T03:04:05Z",
        "command": "qdpo train --preset quickstart",
        "state": "finished",
        "seed": 42,
        "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.17.0", "peft": "0.21.2"},
        "hardware": {"kind": "cpu", "name": "Example CPU", "capability": None, "memory_bytes": 8 << 30},
        "dtype": {"compute": "float32", "reason": "CPU: float32 is faster"},
        "base": {
            "name": "quickstart",
            "folder": "/somewhere/site-packages/qdpo/assets/base",
            "revision": None,
            "architecture": "MistralForCausalLM",
            "parameters": 3456789,
            "license": "apache-2.0",
            "weights_sha256": "ab" * 32,
        },
        "quantization": {
            "method": "nf4",
            "double_quant": True,
            "blocksize": 64,
            "load_dtype": "float32",
            "modules": ["model.layers.0.self_attn.q_proj"],
        },
        "tokenizer": {"template_sha256": "cd" * 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        "data": {
            "train": {"name": "quickstart", "split": "train", "fingerprint": "12" * 32, "pairs": 960},
            "heldout": {"name": "quickstart", "split": "heldout", "fingerprint": "34" * 32, "pairs": 200},
        },
        "adapter": {"modules": 28, "trainable_parameters": 234567},
        "checks": [{"name": "policy equals reference", "detail": "loss 0.6931 = ln 2"}],
        "result": {
            "steps": STEPS,
            "epochs": 2.0,
            "seconds": 123.4,
            "peak_memory_bytes": 1 << 30,
            "tokens": 98765,
            "before": {"eval_loss": math.log(2)},
            "after": {"eval_loss": 0.1},
            "text_nll": {"before": 2.0, "after": 2.1},
            "adapter_step": STEPS,
            "adapter_sha256": "ef" * 32,
        },
    }


def data_report() -> dict[str, Any]:
    def part(rows: int, pairs: int) -> dict[str, Any]:
        lengths = {"min": 4, "median": 9, "p95": 14.0, "max": 31}
        return {
            "rows_read": rows,
            "pairs": pairs,
            "left_out": {"empty `rejected`": {"count": rows - pairs, "first_rows": [118, 402, 977]}},
            "cut": {"prompt": 7, "chosen": 0, "rejected": 1},
            "tokens": {"prompt": lengths, "chosen": lengths, "rejected": lengths},
            "format": "pairs",
            "format_reason": "columns prompt, chosen, rejected",
            "source": "embedded",
        }

    return {"train": part(963, 960), "heldout": part(203, 200)}


class Run:
    """A run directory whose files a test may change before it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = json.loads(json.dumps(CONFIG))
        self.run = run_json()
        self.data: dict[str, Any] | None = data_report()
        self.lines = metric_lines()

    def write(self) -> Path:
        """Write all files and return the folder."""
        config = RunConfig.model_validate(self.config)
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(), allow_unicode=True))
        (self.folder / "run.json").write_text(json.dumps(self.run))
        if self.data is not None:
            (self.folder / "data_report.json").write_text(json.dumps(self.data))
        (self.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        return self.folder

    def line(self, step: int, heldout: bool) -> dict[str, Any]:
        """The line of metrics of one step."""
        return next(x for x in self.lines if x["step"] == step and ("eval_loss" in x) == heldout)

    def use_hub_base(self, name: str = "mlabonne/NeuralMarcoro14-7B", data: str = "hromi/winograd_dpo_basic") -> None:
        """Pretend that base and data came from the hub."""
        self.run["base"] |= {"name": name, "revision": "0123456789abcdef" * 2 + "01234567"}
        self.config["model"]["name"] = name
        self.config["data"] |= {"name": data, "text": None}
        for part in self.run["data"].values():
            part["name"] = data


@pytest.fixture
def example(tmp_path: Path) -> Run:
    """A finished quickstart run, not written yet."""
    return Run(tmp_path)


@pytest.fixture
def card(example: Run) -> Callable[[], str]:
    """Writes the example's files and renders its card."""
    from qdpo.report.card import render_card

    return lambda: render_card(example.write())
