"""A model, a tokenizer and preference pairs small enough to train in a second, and runs of the real thing on them.

run = train_tiny(tiny, folder, "train.optim=adamw_torch")
run.sha256, run.metrics, run.record
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from qdpo.config.resolve import Resolved, resolve
from qdpo.files import sha256_file
from qdpo.run.metrics import read_metrics
from qdpo.training import run as run_module
from qdpo.training.recipe import Recipe

VOCABULARY = 300
TRAIN_ROWS, HELDOUT_ROWS = 44, 12
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ANIMALS = ("cat", "dog", "bird", "horse", "fox", "bear")
PLACES = ("house", "garden", "forest", "river", "park")

TIMES = {"tokens_per_second", "peak_memory_gib"}
"""Metrics that measure the machine, not the run."""


@dataclass(frozen=True)
class Tiny:
    """Files of the tiny world.

    Attributes:
        model: folder with a Llama, its tokenizer and a chat template.
        train: JSONL of training pairs.
        heldout: JSONL of held-out pairs.
        preset: YAML that names them, 20 steps of 8 pairs.
    """

    model: Path
    train: Path
    heldout: Path
    preset: Path


def make_tiny(folder: Path) -> Tiny:
    """Write a tiny world into a folder."""
    tiny = Tiny(folder / "model", folder / "train.jsonl", folder / "heldout.jsonl", folder / "tiny.yaml")
    make_model("llama").save_pretrained(tiny.model)
    make_tokenizer().save_pretrained(tiny.model)
    write_rows(tiny.train, make_rows(TRAIN_ROWS, seed=1))
    write_rows(tiny.heldout, make_rows(HELDOUT_ROWS, seed=2))
    tiny.preset.write_text(
        f"""name: tiny
about: a tiny random model on made-up sentences
model:
  name: {json.dumps(str(tiny.model))}
lora:
  r: 4
  lora_alpha: 8
data:
  name: {json.dumps(str(tiny.train))}
  eval_name: {json.dumps(str(tiny.heldout))}
  max_length: 96
  max_prompt_length: 64
train:
  pairs_per_step: 8
  max_steps: 20
  learning_rate: 1.0e-3
  warmup_steps: 2
  eval_every: 10
  log_every: 1
  save_every: 10
  save_minutes: 60.0
samples:
  count: 3
verify:
  answers: 2
  answer_tokens: 24
"""
    )
    return tiny


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 300 tokens that writes a BOS, with a chat template that ends turns by </s>."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(row.values()) for row in make_rows(60, seed=0)], trainer)
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(kind: str, seed: int = 0) -> LlamaForCausalLM | MistralForCausalLM:
    """A random fp32 decoder of hidden size 64 (a multiple of NF4's block) and 2 layers; `kind`: llama or mistral."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
        "initializer_range": 0.15,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**shape, sliding_window=16))
    return LlamaForCausalLM(LlamaConfig(**shape))


def make_rows(n: int, seed: int) -> list[dict[str, str]]:
    """Questions about where an animal is; the chosen answer repeats the place, the rejected one names another."""
    draw = random.Random(seed)
    rows = []
    for number in range(n):
        animal, (place, other) = draw.choice(ANIMALS), draw.sample(PLACES, 2)
        rows.append(
            {
                "prompt": f"{number}: the {animal} is in the {place}. Where is the {animal}?",
                "chosen": f"The {animal} is in the {place}.",
                "rejected": f"The {animal} is in the {other}" + draw.choice((".", ", I think.", " or the shed.")),
            }
        )
    return rows


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@dataclass(frozen=True)
class TinyRun:
    """A finished run.

    Attributes:
        folder: its directory.
        record: run.json.
        metrics: the lines of metrics.jsonl.
    """

    folder: Path
    record: dict[str, Any]
    metrics: list[dict[str, float]]

    @property
    def sha256(self) -> str:
        """Identifies the adapter's weights."""
        return sha256_file(self.folder / "adapter" / "adapter_model.safetensors")

    @property
    def adapter(self) -> dict[str, torch.Tensor]:
        """The adapter's weights."""
        from safetensors.torch import load_file

        return load_file(self.folder / "adapter" / "adapter_model.safetensors")

    @property
    def losses(self) -> list[float]:
        """The loss of every training step."""
        return [line["loss"] for line in self.metrics if "loss" in line]

    def measured(self) -> list[dict[str, float]]:
        """The metrics without those that differ from machine to machine."""
        return [{k: v for k, v in line.items() if k not in TIMES} for line in self.metrics]


def resolve_tiny(tiny: Tiny, *overrides: str) -> Resolved:
    """The tiny preset's configuration with overrides, as the command line makes it."""
    return resolve(str(tiny.preset), overrides)


def train_tiny(tiny: Tiny, folder: Path, *overrides: str, resume: bool = False) -> TinyRun:
    """Train in this process, all stages as `qdpo train` does; only the plots, a third of the time, are left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qdpo.report.plots.draw_plots", lambda folder: None)
        run_module.train(resolve_tiny(tiny, *overrides), folder, preset="tiny", command="qdpo train", resume=resume)
    return read_run(folder)


def read_run(folder: Path) -> TinyRun:
    """What a finished run left."""
    return TinyRun(folder, json.loads((folder / "run.json").read_text()), read_metrics(folder / "metrics.jsonl"))


class Stopped(Exception):
    """The run was stopped by the test."""


class Callback:
    """What a test does within a run; each is given the recipe."""

    def on_step_begin(self, recipe: Recipe) -> None:
        """Before a step's passes."""

    def on_update(self, recipe: Recipe) -> None:
        """When the gradients are there, before they are clipped."""

    def on_step_end(self, recipe: Recipe) -> None:
        """When a step is done, before anything of it is logged or saved."""


class StopAt(Callback):
    """Stops a run after a step, as a crash would: whatever that step was about to log or save is lost."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, recipe: Recipe) -> None:
        """Raise at the step."""
        if recipe.progress.step == self.step:
            raise Stopped


@contextmanager
def with_callbacks(*callbacks: Callback, change: Callable[[Any], None] = lambda recipe: None) -> Iterator[None]:
    """Let the runs made inside call callbacks, and change their recipes before they start."""
    made = Recipe.__init__

    def before(recipe: Any, name: str, called: str) -> None:
        plain = getattr(recipe, name)

        def watched(*args: Any) -> Any:
            for callback in callbacks:
                getattr(callback, called)(recipe)
            return plain(*args)

        setattr(recipe, name, watched)

    def make_and_change(recipe: Any, *args: Any, **kwargs: Any) -> None:
        made(recipe, *args, **kwargs)
        before(recipe, "step", "on_step_begin")
        before(recipe, "update", "on_update")
        before(recipe, "after_step", "on_step_end")
        change(recipe)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recipe, "__init__", make_and_change)
        yield


def train_until(tiny: Tiny, folder: Path, step: int, *overrides: str) -> None:
    """Start a run and let it die after a step."""
    with with_callbacks(StopAt(step)), pytest.raises(Stopped):
        train_tiny(tiny, folder, *overrides)
