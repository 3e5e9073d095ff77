"""Estimate beside measurement for tiny models of four architectures; as a program it writes docs/planner.md's table.

python tests/planner/grid.py
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from engine.toys import score_pack
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from qdpo.config.schema import PROJECTIONS, RunConfig
from qdpo.data.pairs import TokenPair
from qdpo.engine import attention
from qdpo.engine.fuse import fuse
from qdpo.engine.layout import build_pack
from qdpo.engine.recompute import checkpoint_layers
from qdpo.planner.cards import this_machine
from qdpo.planner.estimate import trained_on
from qdpo.planner.find import loaded
from qdpo.planner.lengths import PackShape, lengths_of
from qdpo.planner.meter import peak_bytes
from qdpo.planner.plays import Plays, plays_for
from qdpo.planner.spans import total

VOCAB = 2000
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": VOCAB,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Mistral with a window shorter than the longest sequences, Gemma 2 with its own of every second layer.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 400},
    "qwen3": {},
    "gemma2": {"sliding_window": 400},
}
RANKS = (4, 64)
# prompt, completion, pairs: short ones take the padded batches, long ones the loop over segments
BATCHES = ((24, 8, 8), (60, 40, 16), (300, 120, 2), (500, 250, 1))
CHECKPOINTED: tuple[int | None, ...] = (None, 2, 0)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """One place of the grid."""

    kind: str
    rank: int
    batch: tuple[int, int, int]
    checkpointed: int | None


def cases() -> Iterator[Case]:
    """The whole grid."""
    for kind in ARCHITECTURES:
        for rank in RANKS:
            for batch in BATCHES:
                for checkpointed in CHECKPOINTED:
                    yield Case(kind, rank, batch, checkpointed)


def pairs_of(batch: tuple[int, int, int]) -> list[TokenPair]:
    """Pairs of random tokens around the given lengths."""
    prompt, completion, count = batch
    rng = random.Random(0)

    def words(length: int, spread: int) -> list[int]:
        return [rng.randrange(3, VOCAB) for _ in range(length + rng.randrange(-spread, spread + 1))]

    return [
        TokenPair(i, words(prompt, prompt // 8), words(completion, completion // 8), words(completion, 0))
        for i in range(count)
    ]


def policy_of(kind: str, rank: int) -> Any:
    """A random fp32 model with a fused adapter, in training mode."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, **ARCHITECTURES[kind]})
    # soft-capped scores exist in transformers' eager attention only
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager" if kind == "gemma2" else "sdpa")
    settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM")
    policy = get_peft_model(model.requires_grad_(False), settings)
    attention.install(policy.get_base_model())
    fuse(policy.get_base_model())
    return policy.train()


def config_of(rank: int, checkpointed: int | None) -> RunConfig:
    """The configuration of a case."""
    return RunConfig.model_validate(
        {
            "name": "grid",
            "model": {"name": "random", "quantization": "none", "dtype": "float32"},
            "lora": {"r": rank},
            "data": {"name": "random"},
            "packing": {"checkpoint_layers": "auto" if checkpointed is None else checkpointed},
        }
    )


def plays_of(policy: Any, case: Case) -> Plays:
    """Of the case's base, on a CPU."""
    return plays_for(loaded("grid", policy.get_base_model()), config_of(case.rank, case.checkpointed), this_machine())


def compare(policy: Any, case: Case) -> tuple[int, float]:
    """Bytes above base and adapter at the peak of forward and backward: measured, estimated."""
    model, pairs = policy.get_base_model(), pairs_of(case.batch)
    checkpoint_layers(model, case.checkpointed)

    def step() -> None:
        pack = build_pack(pairs, range(len(pairs)))
        score_pack(model, pack).logps.sum().backward()
        policy.zero_grad(set_to_none=True)

    step()
    measured = peak_bytes(step, CPU)
    pack = PackShape(tuple(lengths_of(pairs)))
    found = trained_on(plays_of(policy, case), config_of(case.rank, case.checkpointed), pack, several=False)
    return measured, max(found.peaks.values())


def compare_scoring(policy: Any, case: Case) -> tuple[int, float]:
    """The same for a pass without gradients and without the adapter: the reference's."""
    model, pairs = policy.get_base_model(), pairs_of(case.batch)

    def score() -> None:
        with torch.no_grad(), policy.disable_adapter():
            score_pack(model, build_pack(pairs, range(len(pairs))))

    policy.eval()
    measured = peak_bytes(score, CPU)
    policy.train()
    plays = plays_of(policy, case)
    spans = plays.score(PackShape(tuple(lengths_of(pairs))), adapters=False)
    return measured, max(total(spans, plays.model.stand_in).peaks.values())


def table() -> list[str]:
    """The grid as a Markdown table."""
    rows = ["| architecture | r | prompt + completion x pairs | checkpointed | measured MB | estimated MB | error |"]
    rows.append("|---|---|---|---|---|---|---|")
    policies: dict[tuple[str, int], Any] = {}
    for case in cases():
        key = (case.kind, case.rank)
        if key not in policies:
            policies = {key: policy_of(*key)}
        measured, estimated = compare(policies[key], case)
        prompt, completion, count = case.batch
        layers = 3 if case.checkpointed is None else case.checkpointed
        rows.append(
            f"| {case.kind} | {case.rank} | {prompt} + {completion} x {count} | {layers} of 4 | {measured / 1e6:.1f} | "
            f"{estimated / 1e6:.1f} | {estimated / measured - 1:+.1%} |"
        )
        print(rows[-1], file=sys.stderr)
    return rows


BEGIN, END = "<!-- grid -->", "<!-- /grid -->"


def write(page: Path) -> None:
    """Put the table between its marks."""
    text = page.read_text()
    before, rest = text.split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(table()) + f"\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    write(Path(__file__).resolve().parents[2] / "docs" / "planner.md")
