"""The base model: its shape and its training on the corpus."""

import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM

from .tokenizer import BOS, EOS, PAD, SPECIAL_TOKENS

CARD = """---
license: apache-2.0
language: en
---

The base of qdpo's quickstart: a demonstration model, see ../README.md.
"""
IGNORED = -100  # label of a padding position


@dataclass(frozen=True)
class BaseTraining:
    """How the base is trained."""

    batch_tokens: int = 1536  # tokens per optimizer step, padding included
    muon_rate: float = 0.02  # peak rate of the layers' matrices
    adam_rate: float = 4e-3  # peak rate of the embedding and the norms
    warmup_steps: int = 30
    log_every: int = 50  # steps


def model_config(tokenizer: Tokenizer, max_length: int) -> MistralConfig:
    """A Mistral of about 3.5 million parameters. Widths are multiples of 256, so that GGUF's K-quants apply."""
    return MistralConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=max_length,
        sliding_window=None,
        tie_word_embeddings=True,
        initializer_range=0.03,
        bos_token_id=SPECIAL_TOKENS.index(BOS),
        eos_token_id=SPECIAL_TOKENS.index(EOS),
        pad_token_id=SPECIAL_TOKENS.index(PAD),
    )


def encode_texts(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids per text, with one BOS in front and an EOS behind (a conversation already has its own)."""
    eos = SPECIAL_TOKENS.index(EOS)
    rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    return [row if eos in row else [*row, eos] for row in rows]


def batches(rows: list[list[int]], batch_tokens: int, rng: random.Random) -> Iterator[list[list[int]]]:
    """One shuffled pass, in batches of rows of similar length that hold at most ``batch_tokens``, padding included."""
    shuffled = rng.sample(rows, len(rows))
    pool_size = 2000  # sorting within pools keeps padding small and the order random
    cut: list[list[list[int]]] = []
    for start in range(0, len(shuffled), pool_size):
        batch: list[list[int]] = []
        for row in sorted(shuffled[start : start + pool_size], key=len):
            if batch and (len(batch) + 1) * len(row) > batch_tokens:
                cut.append(batch)
                batch = []
            batch.append(row)
        cut.append(batch)
    rng.shuffle(cut)
    yield from cut


def pad(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded (ids, labels), both [rows, longest]. Causal attention never looks right, so no mask is needed."""
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        labels[index, : len(row)] = ids[index, : len(row)]
    return ids, labels


def mean_nll(model: MistralForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood per predicted token, in nats."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED)


def optimizers(model: MistralForCausalLM, plan: BaseTraining) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, which needs far fewer steps here than AdamW, and AdamW for the rest."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if "layers" in name and p.ndim == 2]
    others = [p for name, p in named if "layers" not in name or p.ndim != 2]
    return [
        torch.optim.Muon(matrices, lr=plan.muon_rate, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=plan.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(config: MistralConfig, corpus: list[list[int]], plan: BaseTraining, seed: int) -> MistralForCausalLM:
    """A model trained from scratch in float32, in one pass over the corpus."""
    torch.manual_seed(seed)
    model = MistralForCausalLM(config)
    model.train()
    schedule = list(batches(corpus, plan.batch_tokens, random.Random(f"batches-{seed}")))
    steppers = optimizers(model, plan)
    groups = [(group, group["lr"]) for stepper in steppers for group in stepper.param_groups]
    started = time.monotonic()
    for step, batch in enumerate(schedule):
        for group, peak in groups:
            group["lr"] = peak * rate_factor(step, len(schedule), plan.warmup_steps)
        loss = mean_nll(model, *pad(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        if step % plan.log_every == 0 or step + 1 == len(schedule):
            seconds = time.monotonic() - started
            print(f"step {step + 1}/{len(schedule)}  nll {loss.item():.3f}  {seconds:.0f} s", flush=True)
    return model.eval()


def rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine from 1 to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def save_model(model: MistralForCausalLM, folder: Path) -> None:
    """Writes config.json, generation_config.json and model.safetensors, in bfloat16."""
    config = model.config
    model.to(dtype=torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        max_new_tokens=64,
    )
    model.save_pretrained(folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
