"""As much of vLLM as `vllm_program.py` uses, on a model that knows one thing: what comes after each token.

The name of the model folder says how it behaves: `lies` about its log-probabilities, `dies` or `fails` while it loads.
"""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 40
__version__ = "0.0-fake"


def table() -> torch.Tensor:
    """Logits after each token, [vocabulary, vocabulary]."""
    return torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0))


class SamplingParams:
    def __init__(self, **settings: Any) -> None:
        self.settings = settings


class Model:
    def compute_logits(self, ids: torch.Tensor) -> torch.Tensor:
        return table()[ids]


class LLM:
    def __init__(self, model: str, max_model_len: int, **settings: Any) -> None:
        self.name, self.context, self.settings = Path(model).name, max_model_len, settings
        self.model = Model()
        if self.name == "dies":
            print("not enough memory for the cache", flush=True)
            os._exit(3)
        if self.name == "fails":
            raise ValueError("architecture not supported")

    def apply_model(self, use: Any) -> list[Any]:
        return [use(self.model)]

    def generate(self, prompts: list[Any], asked: SamplingParams, use_tqdm: bool, lora_request: Any) -> list[Any]:
        return [self._one(prompt["prompt_token_ids"], asked.settings) for prompt in prompts]

    def _one(self, ids: list[int], asked: dict[str, Any]) -> Any:
        made: list[int] = []
        while len(made) < asked["max_tokens"]:
            made.append(int(self.model.compute_logits(torch.tensor([[*ids, *made][-1]])).argmax()))
            if made[-1] in asked.get("stop_token_ids", []):
                break
        said: list[Any] = [None]
        if "prompt_logprobs" in asked and len(ids) > 1:
            rows = self.model.compute_logits(torch.tensor(ids[:-1])).log_softmax(-1)
            wrong = 0.5 if self.name == "lies" else 0.0
            for row, token in zip(rows, ids[1:], strict=True):
                said.append({token: types.SimpleNamespace(logprob=float(row[token]) + wrong)})
        return types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=made)], prompt_logprobs=said)


def python_with(folder: Path) -> Path:
    """A Python that has this file as `vllm`, whatever its options."""
    (folder / "vllm.py").write_text(Path(__file__).read_text("utf-8"), "utf-8")
    code = f"import runpy, sys; sys.path.insert(0, {str(folder)!r}); del sys.argv[:2]"
    code += "; runpy.run_path(sys.argv[0], run_name='__main__')"
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n', "utf-8")
    python.chmod(0o755)
    return python
