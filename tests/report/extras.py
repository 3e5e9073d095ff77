"""What `qdpo eval`, `qdpo merge-export` and the samples add to a run directory, made by the code that makes it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

from qdpo.data.pairs import TokenPair
from qdpo.evaluation import tasks
from qdpo.evaluation.harness import Row, Settings
from qdpo.evaluation.scoring import PairScores
from qdpo.evaluation.summary import summarise
from qdpo.export.verify.checks import Check
from qdpo.export.verify.report import SCHEMA, Report
from qdpo.export.verify.verdict import Finding
from qdpo.files import write_json, write_manifest
from qdpo.run.pairs import write_pairs


def write_samples(run: Path, texts: list[tuple[str, str, str]], steps: tuple[int, ...] = (0, 120)) -> None:
    """samples.jsonl: prompts with the answers of base and policy."""
    rows = [
        {"step": step, "sample": i, "prompt": prompt, "base": base, "policy": policy if step else base}
        for step in steps
        for i, (prompt, base, policy) in enumerate(texts)
    ]
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def scores(n: int = 60) -> PairScores:
    """Scores of a policy that prefers most of the chosen sides."""
    made = torch.Generator().manual_seed(0)
    base = -20 + 3 * torch.randn(n, 2, generator=made, dtype=torch.float64)
    gain = torch.randn(n, 2, generator=made, dtype=torch.float64) + torch.tensor([1.5, -2.0], dtype=torch.float64)
    tokens = torch.randint(8, 30, (n, 2), generator=made)
    return PairScores(base, base + gain, tokens, gain.abs() / 10)


def write_heldout(run: Path, name: str = "heldout.json", source: str = "hromi/winograd_dpo_basic") -> dict[str, Any]:
    """evaluation/heldout.json, or another file of pairs."""
    result = {
        "schema": 1,
        "kind": "heldout",
        "model": {},
        "data": {"source": source, "pairs": 60, "prompts": 60, "fingerprint": "0" * 64},
        **summarise(scores(), 0.1, adapted=True),
    }
    (run / "evaluation").mkdir(exist_ok=True)
    write_json(run / "evaluation" / name, result)
    return result


def write_tasks(run: Path) -> None:
    """evaluation/tasks.json with one task of the Open LLM Leaderboard, whole, and one limited."""

    def row(task: str, value: float, shots: int) -> Row:
        dataset: dict[str, str | None] = {"path": "winogrande", "config": "winogrande_xl", "split": "validation"}
        return Row(task, task, "1.0", shots, "none", "acc", dataset, 100, value, 0.0138)

    whole = tasks.entries([row("winogrande", 0.7419, 5)], [row("winogrande", 0.7561, 5)], Settings())
    part = tasks.entries([row("hellaswag", 0.5, 0)], [row("hellaswag", 0.6, 0)], Settings(limit=10))
    about = {"description": "hf (pretrained=/home/someone/models/base,dtype=float32)"}
    found = {
        "schema": 1,
        "lm_eval": "0.4.9",
        "form": "adapter",
        "chat_template": False,
        "models": {"base": about, "result": about},
        "tasks": [*whole, *part],
        "averages": {},
        "model_index": tasks.model_index([*whole, *part]),
    }
    (run / "evaluation").mkdir(exist_ok=True)
    write_json(run / "evaluation" / tasks.TASKS, found)


def write_export(run: Path, format: str, contents: dict[str, bytes], verified: bool = True, **record: Any) -> Path:
    """export/FORMAT with export.json, a manifest, and the record of a verification."""
    folder = run / "export" / format
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    write_json(folder / "export.json", {"schema": 1, "format": format, "merge_base": "trained", **record})
    write_manifest(folder)
    if verified:
        row = {"accuracy": 0.95, "margin": 1.25, "kl": 2.6e-3, "top1": 0.99, "text": 3.5, "engine": "llama.cpp"}
        report = Report(next(iter(contents)), "Q4_K_M", [Check("integrity", True, "3 files")], pairs=64)
        report.parity["exported"] = row
        for name in ("adapter in the weights", "divergence"):
            report.findings.append(Finding(name, "passed", "as it should be"))
        verdict = {"schema": SCHEMA, "format": format, "merge_base": "trained", "verdict": report.verdict}
        write_json(folder / "verify.json", {**verdict, "artefacts": [report.record()]})
    return folder


class Words:
    """A tokenizer whose ids are words."""

    chat_template = None

    def __init__(self) -> None:
        self.words: list[str] = []

    def encode(self, text: str) -> list[int]:
        """Ids of a text's words, new ones where needed."""
        ids = []
        for word in text.split(" "):
            if word not in self.words:
                self.words.append(word)
            ids.append(self.words.index(word))
        return ids

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        """The words."""
        return " ".join(self.words[i] for i in ids)


def write_scored_pairs(run: Path, texts: list[tuple[str, str, str]], seed: int = 0) -> list[float]:
    """evaluation/pairs.jsonl with random scores; returns the margins."""
    chance, words = random.Random(seed), Words()
    pairs = [TokenPair(i, *(words.encode(text) for text in row)) for i, row in enumerate(texts)]
    reference = [[-20.0, -21.0] for _ in pairs]
    policy = [[-20 + chance.gauss(1, 3), -21 + chance.gauss(-1, 3)] for _ in pairs]
    write_pairs(run, pairs, policy, reference, 0.1, words)
    lines = (run / "evaluation" / "pairs.jsonl").read_text().strip().split("\n")
    return [json.loads(line)["margin"] for line in lines]
